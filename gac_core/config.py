"""The settings of an ensemble and of its members, in Python or YAML.

Knows nothing of models: it checks and carries values.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import yaml

from gac_core.checks import check_flag, check_int, check_list, check_number, check_option, check_text
from gac_core.errors import ConfigError, listed, quote
from gac_core.fieldnames import check_names, checked_names
from gac_core.templates.plain import check_template
from gac_core.yamlfile import read_yaml

COMMITS = ("canonical", "context-free")
ALIGNMENTS = ("token",)
DRAFTS = ("lookup", "ahead")
DTYPES = ("auto", "float32", "bfloat16", "float16")
QUANTIZATIONS = ("8bit", "4bit")


@checked_names
@dataclass(frozen=True)
class MemberConfig:
    """One model of an ensemble.

    Attributes:
        model: Name on a model hub, a folder, or the path of a GGUF file (``.gguf``).
        name: What the member is called; default the stem of a GGUF file, else the last part of ``model``.
        weight: Its share in the average, relative to the others'; above 0. Default 1.
        dtype: ``"auto"`` (default: as stored), ``"float32"``, ``"bfloat16"`` or ``"float16"``.
        device: For example ``"cpu"`` or ``"cuda:1"``. Default: the GPUs in turn if there are any, else the CPU.
        device_map: How accelerate spreads the model over devices (``"auto"`` or a mapping); excludes ``device``.
        revision: Version on the hub.
        tokenizer: Name, folder or GGUF file of the tokenizer; default where the weights come from.
        chat_template: A Jinja chat template in place of the tokenizer's own; or ``"plain"``: turns as text under
            ``System:``, ``User:``, ``Assistant:`` and ``Tool:``, for models without a template, such as base models.
            Answers then also end where a line begins with one of these, unless the request has a grammar.
        context: The longest text it may read, in tokens; default what the model's config says.
        trust_remote_code: Run code that the model's folder brings along. Default False.
        quantization: ``"8bit"`` or ``"4bit"`` packs the weights through bitsandbytes (the extra ``quantized``). None
            (default) leaves them as they are.
        compile: Compile the forwards of a few tokens, for CUDA graphs on a GPU; each shape takes seconds to minutes
            when it is first met. Default False.
        gguf_file: A GGUF file in the folder or hub repository ``model`` (the extra ``gguf``). Its weights stay packed
            where transformers has a kernel for them, and are dequantised into ``dtype`` otherwise; ``"auto"`` means
            float32 for a file of packed weights. Its tokenizer and chat template are used. Default None.
        allow_pickle: Load weights that exist only as pickle (``pytorch_model.bin``), a format that can carry code;
            False (default) loads safetensors only.
    """

    model: str
    name: str | None = None
    weight: float = 1.0
    dtype: str = "auto"
    device: str | None = None
    device_map: str | Mapping[str, Any] | None = None
    revision: str | None = None
    tokenizer: str | None = None
    chat_template: str | None = None
    context: int | None = None
    trust_remote_code: bool = False
    quantization: str | None = None
    compile: bool = False
    gguf_file: str | None = None
    allow_pickle: bool = False

    def __post_init__(self) -> None:
        model = str(self.model) if isinstance(self.model, Path) else self.model
        self._set("model", check_text(ConfigError, "a member's model", model, "give a name on a hub, or a folder"))
        if isinstance(self.tokenizer, Path):
            self._set("tokenizer", str(self.tokenizer))
        for field in ("name", "tokenizer", "revision", "chat_template"):
            if getattr(self, field) is not None:
                self._set(field, check_text(ConfigError, self._said(field), getattr(self, field)))
        self._set("weight", check_number(ConfigError, self._said("weight"), self.weight, 0, low_open=True))
        self._set("dtype", check_option(ConfigError, self._said("dtype"), self.dtype, DTYPES))
        if self.quantization is not None and self.quantization not in QUANTIZATIONS:
            raise ConfigError(
                f"{self._said('quantization')} must be {' or '.join(QUANTIZATIONS)} or None, not "
                f"{quote(self.quantization)}"
            )
        for field in ("compile", "trust_remote_code", "allow_pickle"):
            check_flag(ConfigError, self._said(field), getattr(self, field))
        if self.context is not None:
            self._set("context", check_int(ConfigError, self._said("context"), self.context, 1))
        self._check_source()
        check_template(self._said("chat_template"), self.chat_template)
        self._check_device()

    def _check_device(self) -> None:
        if self.device is not None and self.device_map is not None:
            raise ConfigError(f"member {quote(self.called)} has both device and device_map; give one of them")
        if self.device is not None:
            if not isinstance(self.device, str):
                raise ConfigError(
                    f"{self._said('device')} must be a string such as 'cpu' or 'cuda:1', not {quote(self.device)}; "
                    "several devices are set by one device for each member, or by device_map"
                )
            self._set("device", check_text(ConfigError, self._said("device"), self.device))
        places = self.device_map
        if isinstance(places, Mapping):
            if not places or not all(
                isinstance(module, str) and isinstance(place, (str, int)) and not isinstance(place, bool)
                for module, place in places.items()
            ):
                raise ConfigError(
                    f"{self._said('device_map')} must map names of modules to devices, for example {{'': 'cuda:0'}}, "
                    f"not {quote(places)}"
                )
            self._set("device_map", dict(places))
        elif places is not None:
            remedy = "give 'auto' or a mapping of modules to devices"
            self._set("device_map", check_text(ConfigError, self._said("device_map"), places, remedy))

    def _said(self, field: str) -> str:
        return f"the {field} of member {quote(self.called)}"

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def _check_source(self) -> None:
        file = self.gguf_file
        if file is not None:
            if not (isinstance(file, str) and file.endswith(".gguf")):
                raise ConfigError(f"{self._said('gguf_file')} must name a .gguf file, not {quote(file)}")
            self._set("gguf_file", check_text(ConfigError, self._said("gguf_file"), file))
        if file is not None and self.model.endswith(".gguf"):
            raise ConfigError(
                f"member {quote(self.called)} names two GGUF files, {quote(self.model)} and {quote(file)}; give one"
            )
        if self.is_gguf and self.quantization is not None:
            raise ConfigError(
                f"{self._said('quantization')} cannot be combined with a GGUF file, whose weights are quantized "
                "already; leave it out, or set it for the other members alone"
            )

    @property
    def is_gguf(self) -> bool:
        """Whether the weights come from a GGUF file."""
        return self.gguf_file is not None or self.model.endswith(".gguf")

    @property
    def called(self) -> str:
        """The member's name."""
        if isinstance(self.name, str):
            return self.name
        path = Path(self.gguf_file if isinstance(self.gguf_file, str) else self.model)
        return (path.stem if path.suffix == ".gguf" else path.name) or self.model


@checked_names
@dataclass(frozen=True)
class EnsembleConfig:
    """A whole ensemble.

    Attributes:
        members: The members, at least one; names must differ.
        gate: Name of the gate of thresholded mode. Default: the member with the largest weight; among equal weights the
            largest model; among equal sizes the first.
        threshold: None (default) ensembles every step; a number in [0, 1] lets the gate decide alone at or above it.
        max_batch_size: Requests that run at once; more wait their turn. Default 16.
        commit: How a picked token enters a member that did not choose it. ``"canonical"`` cuts the member's text anew
            since the last safe boundary, so that it only sees text tokenized as in its training; ``"context-free"``
            encodes the token's bytes alone.
        alignment: How the members' distributions are compared. ``"token"`` (default, and the only rule): the paper's,
            union tokens compete one against the other.
        drafts: Where tokens may be drafted that are then checked several at once; changes the cost, never the text.
            ``"lookup"``: what followed the same words before, in the prompt or the text. ``"ahead"``: the gate, or the
            cheapest member, writes on, and the others check. Default both, and none with ``deterministic``. An empty
            tuple drafts nothing. In bfloat16 and float16 see ``deterministic``.
        max_queue: Requests that may wait for their turn; more are refused. Default 1024.
        prefill_tokens: Tokens of long prompts that a member reads in one step at most. Default 512.
        prefill_seconds: Seconds that all members together may read long prompts in one step while other requests run;
            the measured speed of each decides how many tokens that is (16 at least). With ``deterministic``, parts are
            fixed in tokens and this has no effect. Default 0.25.
        deterministic: Compute each request by itself: one request per forward, prompts in fixed parts, no drafts and no
            reuse of prompt prefixes. Texts then do not depend on what else runs or ran, in any dtype, bit for bit on
            one machine with one number of threads; batches gain no speed. Default False: in float32 batching, drafts
            and prefix reuse change results by rounding alone (about 1e-6, which practically never changes a text); in
            bfloat16 and float16 they may change a token whose probability is nearly that of another one, and with it
            all that follows. Excludes ``drafts`` and members with ``compile``.
        cache_gib: Memory per member, in GiB, for the keys and values of running requests and of finished ones; those of
            finished ones are kept for prompts that begin alike, and the least recently used given up beyond this.
            Running ones are never given up. 0 keeps nothing. Default 1.
        stuck_after: Seconds after which a step of the engine that has not returned counts as stuck: new requests are
            then refused with an `EngineStuckError`, until it returns. Must be longer than the longest step, which on a
            CPU may read ``prefill_tokens`` with every member. Default 600.
    """

    members: tuple[MemberConfig, ...]
    gate: str | None = None
    threshold: float | None = None
    max_batch_size: int = 16
    commit: str = "canonical"
    alignment: str = "token"
    drafts: tuple[str, ...] | None = None
    max_queue: int = 1024
    prefill_tokens: int = 512
    prefill_seconds: float = 0.25
    cache_gib: float = 1.0
    deterministic: bool = False
    stuck_after: float = 600.0

    def __post_init__(self) -> None:
        members = check_list(ConfigError, "members", self.members, "names, folders or member configurations")
        self._set("members", tuple(as_member(member) for member in members))
        names = self.names
        if not names:
            raise ConfigError("an ensemble needs at least one member; members is empty")
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ConfigError(f"two members are called {quote(twice[0])}; give them different MemberConfig.name")
        if self.gate is not None:
            if self.gate not in names:
                raise ConfigError(f"the gate {quote(self.gate)} is not a member; members are: {listed(names)}")
            self._set("gate", str.__str__(self.gate))
        if self.threshold is not None:
            self._set("threshold", check_number(ConfigError, "threshold", self.threshold, 0, 1))
        self._set("commit", check_option(ConfigError, "commit", self.commit, COMMITS))
        self._set("alignment", check_option(ConfigError, "alignment", self.alignment, ALIGNMENTS))
        check_flag(ConfigError, "deterministic", self.deterministic)
        self._check_drafts()
        for field, low in (("max_batch_size", 1), ("max_queue", 0), ("prefill_tokens", 16)):
            self._set(field, check_int(ConfigError, field, getattr(self, field), low))
        self._set("cache_gib", check_number(ConfigError, "cache_gib", self.cache_gib, 0, 2**20))
        for field in ("prefill_seconds", "stuck_after"):
            self._set(field, check_number(ConfigError, field, getattr(self, field), 0, low_open=True))

    def _check_drafts(self) -> None:
        drafts = self.drafts
        if drafts is None:
            drafts = () if self.deterministic else DRAFTS
        drafts = check_list(ConfigError, "drafts", drafts, f"some of {', '.join(DRAFTS)}")
        self._set("drafts", tuple(check_option(ConfigError, "drafts", draft, DRAFTS) for draft in drafts))
        if self.deterministic:
            self._check_deterministic()

    def _set(self, field: str, value: object) -> None:
        object.__setattr__(self, field, value)

    def _check_deterministic(self) -> None:
        if self.drafts:
            raise ConfigError(f"deterministic=True computes no drafts, not {', '.join(self.drafts)}; give drafts=()")
        compiled = [member.called for member in self.members if member.compile]
        if compiled:
            raise ConfigError(
                f"deterministic=True runs one request per forward, but member {quote(compiled[0])} has compile=True, "
                "which batches; set it to False"
            )

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
        check_names(values, cls)
        return cls(**{**values, "members": values.get("members", ())})

    @classmethod
    def from_yaml(cls, path: str | Path) -> EnsembleConfig:
        """Reads a configuration from a YAML file.

        Raises:
            ConfigError: The file cannot be read, is not a mapping, or holds wrong values.
        """
        values = read_yaml(path)
        if not isinstance(values, Mapping):
            raise ConfigError(f"the configuration {quote(str(path))} must be a mapping with the key 'members'")
        try:
            return cls.from_dict(values)
        except ConfigError as error:
            error.args = (f"{error}; in the configuration {quote(str(path))}",)
            raise

    def to_yaml(self) -> str:
        """Writes the configuration as YAML; values that are defaults are left out of members."""
        values = asdict(self)
        defaults = {field.name: field.default for field in fields(MemberConfig)}
        values["drafts"] = list(self.drafts or ())
        values["members"] = [
            {key: value for key, value in member.items() if key == "model" or value != defaults[key]}
            for member in values["members"]
        ]
        return str(yaml.safe_dump(values, sort_keys=False))


def as_member(value: str | Path | Mapping[str, Any] | MemberConfig) -> MemberConfig:
    """Returns a member's configuration from a name, a folder, a mapping or a configuration."""
    if isinstance(value, MemberConfig):
        return value
    if isinstance(value, (str, Path)):
        return MemberConfig(str(value))
    if isinstance(value, Mapping):
        check_names(value, MemberConfig)
        if "model" not in value:
            raise ConfigError("a member needs the key 'model': a name on a hub, or a folder")
        return MemberConfig(**value)
    raise ConfigError(f"each of members must be a name, a folder, a mapping or a MemberConfig, not {quote(value)}")
