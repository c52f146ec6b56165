"""The settings of an ensemble, in Python or YAML."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import yaml

from gac_core.calibration_file import CALIBRATED, REMEDY, WEIGHT_SOURCES, Calibration
from gac_core.checks import check_flag, check_int, check_list, check_number, check_option, check_text
from gac_core.config_checks import check_deterministic, check_placement, checked_devices, checked_drafts, checked_policy
from gac_core.doubt import AbsenceCalibration
from gac_core.errors import ConfigError, listed, quote
from gac_core.fieldnames import check_names, checked_names
from gac_core.member_config import MemberConfig, Weights, as_member, with_weights
from gac_core.rule_names import check_combine, check_combine_documents, check_gate_rule, check_rules
from gac_core.yamlfile import read_yaml

COMMITS = ("canonical", "context-free")
ALIGNMENTS = ("token",)
DRAFTS = ("lookup", "ahead")
EXECUTORS = ("local", "ray")


@dataclass(frozen=True)
class FailurePolicy:
    """What happens to a request when one of its members fails.

    Attributes:
        drop: Whether it goes on without the member.
        min_members: With fewer members it fails.
        gate_must_live: Whether it fails with its gate, if it has a threshold.
        forward_timeout: Seconds that a member's forward may take; None: no limit.
    """

    drop: bool = False
    min_members: int = 1
    gate_must_live: bool = False
    forward_timeout: float | None = None


@checked_names
@dataclass(frozen=True)
class EnsembleConfig:
    """A whole ensemble.

    Attributes:
        members: The members, at least one; names must differ.
        gate: Name of the gate of thresholded mode. Default: the member with the largest weight; among equal weights the
            largest model; among equal sizes the first. The weights of a request replace the configured ones in this
            rule. Without a threshold, a request in which the configured gate has the weight 0 uses the default.
        threshold: None (default) ensembles every step; a number in [0, 1] lets the gate decide alone at or above it.
        max_batch_size: Requests that run at once; further ones wait. One with documents or voices counts once for each
            prompt that a member reads, and runs alone if these are more. Default 16.
        commit: How a selected token is appended to the text of a member that did not choose it. ``"canonical"``
            (default) retokenizes the member's text since the last safe boundary, so that it reads text tokenized as in
            its training; ``"context-free"`` encodes the token's bytes alone.
        alignment: How the members' distributions are compared. ``"token"`` (default, and the only rule): the paper's;
            union tokens compete with one another.
        combine: How the members' distributions become one (`gac_core.combination`, docs/rules.md). ``"arithmetic"``
            (default): the weighted mean, the paper's rule. ``"geometric"``: the weighted geometric mean, which needs
            probability from every member. ``"power:R"``, such as ``"power:0.5"``: the power mean with the exponent R;
            ``"harmonic"`` is that of -1. ``"min"``, ``"max"``: the smallest or largest probability. ``"core"``: CoRE's
            weights by consistency. ``"safe"``: SAFE's selection of positions, the gate's distribution at the others.
        combine_documents: How the distributions of several documents become one (`gac_core.combination.documents`),
            after the members' within each document. ``"mean"`` (default): the mean with the documents' weights.
            ``"contrast"``: for each token the document that most raises its probability above the prior's;
            ``"contrast:BETA"``, such as ``"contrast:0.5"``, sets the exponent of the contrast (0.25), and
            ``"contrast:jsd"`` measures it. ``"confidence"``: the mean with the weights times the certainty of each
            document's distribution.
        gate_rule: What is compared with ``threshold``. ``"confidence"`` (default): the gate's largest probability, the
            paper's rule. ``"margin"``: the difference of its two largest probabilities. ``"entropy"``: exp(-entropy).
            ``"consensus"``: 1 where no other member can change the greedy token of ``combine="arithmetic"``, which it
            requires; with ``threshold=1`` the text is that without a threshold.
        drafts: Sources of drafted tokens, which are verified several at once; they change the cost, never the text.
            ``"lookup"``: what followed the same words before, in the prompt or the answer. ``"ahead"``: the gate, or
            the fastest member, drafts, and the others verify. Default both, and none with ``deterministic``. An empty
            tuple drafts nothing. In bfloat16 and float16 see ``deterministic``.
        max_queue: Requests that may wait; further ones are refused with a `QueueFullError`. Default 1024.
        prefill_tokens: Tokens of long prompts that a member computes in one step at most. Default 512.
        prefill_seconds: Seconds that all members together may compute long prompts in one step while others run; the
            measured speed of each decides how many tokens that is (16 at least). With ``deterministic``, parts are
            fixed in tokens and this has no effect. Default 0.25.
        deterministic: Compute each request by itself: one request per forward, prompts in fixed parts, no drafts and no
            reuse of prompt prefixes. Texts then do not depend on what else runs or ran, in any dtype, bit for bit on
            one machine with one number of threads; batches gain no speed. Default False: in float32 batching, drafts
            and prefix reuse change results by rounding alone (about 1e-6, which practically never changes a text); in
            bfloat16 and float16 they may change a token whose probability is nearly that of another one, and with it
            all that follows. Excludes ``drafts`` and members with ``compile``.
        cache_gib: Memory per member, in GiB, for the keys and values of running requests and of finished ones; those of
            finished ones are kept for prefix caching, and evicted beyond this limit, least recently used first.
            Those of running requests are never evicted. 0 keeps none. Default 1.
        document_cache_gib: Memory per member, in GiB, for the keys and values of documents, which are kept beside those
            of requests at their exact size: the least recently used are evicted beyond this limit, pinned ones never
            (`Ensemble.warm`). 0 keeps none, and so do ``deterministic`` and members that run row by row. Default 0.5.
        stuck_after: Seconds after which a step of the engine that has not returned counts as stuck: new requests are
            then refused with an `EngineStuckError`, until it returns. Must be longer than the longest step, which on a
            CPU may read ``prefill_tokens`` with every member. Default 600.
        on_member_failure: What happens to a request when a member fails while it runs. ``"fail"`` (default): it ends
            with a `MemberError`. ``"drop"``: it goes on with the other members, their weights renormalised, and the
            member takes part again once it works; `RequestStats.dropped` and a warning say so.
        min_members: With ``"drop"``, a request that has fewer members left fails. Default 1.
        gate_must_live: With ``"drop"``, whether a thresholded request fails when its gate does. Default False: the
            default of ``gate`` among the other members takes its place.
        forward_timeout: Seconds after which a member whose forward has not returned counts as failed, until it returns;
            long enough for ``prefill_tokens``, and shorter than ``stuck_after``. Default 300.
        executor: Where members run. ``"local"`` (default): in this process. ``"ray"`` (the extra ``ray``): each in an
            actor of its own on a Ray cluster, placed by its ``num_gpus``, ``num_cpus`` and ``resources``; this process
            loads tokenizers alone. Files of models must be at the same path on the nodes.
        ray_address: The cluster of ``executor="ray"``, such as ``"10.0.0.1:6379"``, or ``"auto"`` for one that was
            started on this machine. Default: the environment variable ``RAY_ADDRESS``; without it Ray is started on
            this machine alone. Where Ray is initialised already, that one is used.
        devices: The devices among which members without a ``device`` or ``device_map`` of their own are placed by
            their sizes, such as ``("cuda:0", "cuda:1")``: on one each where there are enough, several on one, or a
            large one over several. Members on different devices compute at the same time. Default: all visible GPUs,
            else the CPU.
        weights: Where the members' weights come from. ``"auto"``: from ``calibration``. ``"perplexity"``: from each
            prompt (PackLLM-sim): the more likely a member finds it, the larger its weight; all members take part. A
            list of numbers, or a mapping of names to numbers, sets `MemberConfig.weight`. Default None: those of the
            members; with a ``calibration``, and no member with a weight of its own, ``"auto"``.
        calibration: The path of a YAML file made by ``gac calibrate``, read at once; or its content. Besides weights it
            sets the temperatures of members, ``gate``, ``threshold``, ``combine`` and ``gate_rule``, each only where it
            has its default value here. Default: none.
        absence: The path of a JSON file made by ``gac calibrate-documents``, read at once; or its content. It predicts
            `Doubt.not_in_documents`. Default: none.
        progress: Whether a progress bar per member is shown on stderr while models load. Default None: if stderr is a
            terminal.
    """

    members: tuple[MemberConfig, ...]
    gate: str | None = None
    threshold: float | None = None
    max_batch_size: int = 16
    commit: str = "canonical"
    alignment: str = "token"
    combine: str = "arithmetic"
    combine_documents: str = "mean"
    gate_rule: str = "confidence"
    drafts: tuple[str, ...] | None = None
    max_queue: int = 1024
    prefill_tokens: int = 512
    prefill_seconds: float = 0.25
    cache_gib: float = 1.0
    document_cache_gib: float = 0.5
    deterministic: bool = False
    stuck_after: float = 600.0
    on_member_failure: str = "fail"
    min_members: int = 1
    gate_must_live: bool = False
    forward_timeout: float = 300.0
    executor: str = "local"
    ray_address: str | None = None
    devices: tuple[str, ...] | None = None
    progress: bool | None = None
    weights: Weights | None = None
    calibration: Calibration | Mapping[str, Any] | str | Path | None = None
    absence: AbsenceCalibration | Mapping[str, Any] | str | Path | None = None

    def __post_init__(self) -> None:
        members = check_list(ConfigError, "members", self.members, "names, folders or member configurations")
        self._set("members", tuple(as_member(member) for member in members))
        names = self.names
        if not names:
            raise ConfigError("an ensemble needs at least one member; members is empty")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(
                f"two members are called {quote(twice[0])}; give one another MemberConfig.name, in YAML 'name'"
            )
        self._set_weights()
        if self.calibration is not None:
            self._calibrate(Calibration.of(self.calibration))
        if self.gate is not None:
            if self.gate not in names:
                raise ConfigError(f"the gate {quote(self.gate)} is not a member; members are: {listed(names)}")
            self._set("gate", str.__str__(self.gate))
        if self.threshold is not None:
            self._set("threshold", check_number(ConfigError, "threshold", self.threshold, 0, 1))
        self._set("commit", check_option(ConfigError, "commit", self.commit, COMMITS))
        self._set("alignment", check_option(ConfigError, "alignment", self.alignment, ALIGNMENTS))
        self._set("combine", check_combine(ConfigError, self.combine))
        self._set("combine_documents", check_combine_documents(ConfigError, self.combine_documents))
        self._set("gate_rule", check_gate_rule(ConfigError, self.gate_rule))
        check_rules(ConfigError, self.combine, self.gate_rule, self.combine_documents)
        check_flag(ConfigError, "deterministic", self.deterministic)
        self._set("drafts", checked_drafts(self.drafts, self.deterministic, DRAFTS))
        if self.deterministic:
            check_deterministic(self.members)
        self._set("min_members", check_int(ConfigError, "min_members", self.min_members, 1, len(self.members)))
        self._set("on_member_failure", checked_policy(self.on_member_failure, self.min_members, self.gate_must_live))
        for field, low in (("max_batch_size", 1), ("max_queue", 0), ("prefill_tokens", 16)):
            self._set(field, check_int(ConfigError, field, getattr(self, field), low))
        for field in ("cache_gib", "document_cache_gib"):
            self._set(field, check_number(ConfigError, field, getattr(self, field), 0, 2**20))
        for field in ("prefill_seconds", "stuck_after", "forward_timeout"):
            self._set(field, check_number(ConfigError, field, getattr(self, field), 0, low_open=True))
        self._check_executor()
        if self.absence is not None:
            self._set("absence", AbsenceCalibration.of(self.absence))
        if self.progress is not None:
            check_flag(ConfigError, "progress", self.progress)

    def _set_weights(self) -> None:
        given = self.weights
        members = (
            with_weights(self.members, given) if given is not None and not isinstance(given, str) else self.members
        )
        own = [member for member in self.members if member.weight != 1]
        if given is not None and own and (isinstance(given, str) or members != self.members):
            raise ConfigError(
                f"weights={quote(given)} and the weight {own[0].weight:g} of member {quote(own[0].called)} exclude "
                "each other; leave one of them out"
            )
        if isinstance(given, str):
            self._set("weights", check_option(ConfigError, "weights", given, WEIGHT_SOURCES))
            if given == "auto" and self.calibration is None:
                raise ConfigError(f"weights='auto' needs calibration, the path of a file; {REMEDY}")
        elif given is not None:
            self._set("members", members)
            # Beside a calibration they are kept, since equal weights would otherwise be taken for none.
            kept = None if self.calibration is None else tuple(member.weight for member in members)
            self._set("weights", kept)

    def _calibrate(self, calibration: Calibration) -> None:
        """Fills in what has its default value."""
        calibration.check_members(self.names)
        self._set("calibration", calibration)
        if self.weights is None and all(member.weight == 1 for member in self.members):
            self._set("weights", "auto")
        members = list(self.members)
        for index, member in enumerate(members):
            if member.temperature == 1:
                members[index] = replace(member, temperature=calibration.members[member.called].temperature)
        self._set("members", tuple(members))
        for field in fields(self):
            value = getattr(calibration, field.name) if field.name in CALIBRATED else None
            if value is not None and getattr(self, field.name) == field.default:
                self._set(field.name, value)

    def _check_executor(self) -> None:
        self._set("executor", check_option(ConfigError, "executor", self.executor, EXECUTORS))
        if self.ray_address is not None:
            self._set("ray_address", check_text(ConfigError, "ray_address", self.ray_address))
        check_placement(self.executor, self.ray_address, self.devices, self.members)
        if self.devices is not None:
            self._set("devices", checked_devices(self.devices))

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    @property
    def failures(self) -> FailurePolicy:
        """What happens to requests when a member fails."""
        drop = self.on_member_failure == "drop"
        return FailurePolicy(drop, self.min_members, self.gate_must_live, self.forward_timeout)

    @property
    def names(self) -> list[str]:
        """The members' names, in order."""
        return [member.called for member in self.members]

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> EnsembleConfig:
        """Builds a configuration from plain values; members may be strings or mappings.

        Raises:
            UnknownSettingError: A key is not known.
            ConfigError: A value is wrong.
        """
        if not isinstance(values, Mapping):
            raise ConfigError(f"a configuration must be a mapping with the key 'members', not {quote(values)}")
        check_names(values, cls, of_members=[*(field.name for field in fields(MemberConfig))])
        return cls(**{**values, "members": values.get("members", ())})

    @classmethod
    def from_yaml(
        cls, path: str | Path, calibration: Calibration | Mapping[str, Any] | str | Path | None = None
    ) -> EnsembleConfig:
        """Reads a configuration from a YAML file.

        Args:
            path: The file.
            calibration: Replaces that of the file. Default: the file's own.

        Raises:
            ConfigError: The file cannot be read, is not a mapping, or holds wrong values.
        """
        values = read_yaml(path)
        if not isinstance(values, Mapping):
            raise ConfigError(f"the configuration {quote(str(path))} must be a mapping with the key 'members'")
        try:
            return cls.from_dict(values if calibration is None else {**values, "calibration": calibration})
        except ConfigError as error:
            error.args = (f"{error}; in the configuration {quote(str(path))}",)
            raise

    def to_yaml(self) -> str:
        """Writes the configuration as YAML; values that are defaults are left out of members."""
        values = asdict(self)
        defaults = {field.name: field.default for field in fields(MemberConfig)}
        values["drafts"] = list(self.drafts or ())
        values["devices"] = None if self.devices is None else list(self.devices)
        values["members"] = [
            {key: value for key, value in member.items() if key == "model" or value != defaults[key]}
            for member in values["members"]
        ]
        return str(yaml.safe_dump(values, sort_keys=False))
