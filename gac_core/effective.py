"""The settings in force: an ensemble's default gate, and what one request is answered with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from gac_core.calibration_file import REMEDY, CalibratedMember, Calibration
from gac_core.checks import count_mismatch
from gac_core.config import EnsembleConfig
from gac_core.errors import RequestError, listed, quote
from gac_core.output import EffectiveSettings
from gac_core.rule_names import check_rules
from gac_core.sampling import SamplingParams
from gac_core.settings import ambient_combine, ambient_gate, ambient_threshold, ambient_weights
from gac_core.shares import normalise

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RequestSettings:
    """The settings of one request, with all defaults filled in.

    Attributes:
        weights: Weight by index of each participating member, above 0, in the ensemble's order.
        by_perplexity: Whether these are replaced by weights that follow from the prompt.
        gate: Index of the gate, a participating member.
        threshold: At or above it the gate decides alone; None combines all members at every step.
        combine: Name of a rule, as `EnsembleConfig.combine`.
        combine_documents: Name of a rule, as `EnsembleConfig.combine_documents`.
        alignment: As `EnsembleConfig.alignment`.
        gate_rule: Name of a rule, as `EnsembleConfig.gate_rule`.
    """

    weights: Mapping[int, float]
    gate: int
    threshold: float | None
    combine: str
    combine_documents: str
    alignment: str
    gate_rule: str
    by_perplexity: bool = False


def default_weights(config: EnsembleConfig) -> list[float]:
    """Returns the weight of each member that a request has by default, 0 or more; 1 each where prompts decide."""
    if config.weights == "auto":
        return calibrated_weights(config)
    return [member.weight for member in config.members]


def calibrated_weights(config: EnsembleConfig) -> list[float]:
    """Returns the weights of an ensemble's calibration.

    Raises:
        RequestError: It has none.
    """
    found = calibrated_members(config)
    if not found:
        raise RequestError(
            f"weights='auto' needs a calibration: load the ensemble with calibration='calibration.yaml'; {REMEDY}"
        )
    return [found[name].weight for name in config.names]


def calibrated_members(config: EnsembleConfig) -> Mapping[str, CalibratedMember]:
    """Returns the members of an ensemble's calibration by name; empty without one."""
    return config.calibration.members if isinstance(config.calibration, Calibration) else {}


def default_gate(weights: Sequence[float], sizes: Sequence[int]) -> tuple[int, str]:
    """Returns the index of the default gate and the reason for the choice.

    The member with the largest weight; among equal weights the largest model; among equal sizes the first.

    Args:
        weights: One per member, 0 or more, at least one above 0.
        sizes: Number of parameters of each member's model.
    """
    members = range(len(weights))
    if len(weights) == 1:
        return 0, "the only member"
    heaviest = [member for member in members if weights[member] == max(weights)]
    if len(heaviest) == 1:
        return heaviest[0], "largest weight"
    size = max(sizes[member] for member in heaviest)
    largest = [member for member in heaviest if sizes[member] == size]
    if len(largest) == 1:
        return largest[0], "largest model of those with the largest weight"
    return largest[0], "first of those with the largest weight and size"


def gate_index(names: Sequence[str], gate: str) -> int:
    """Returns the index of the member that a gate names.

    Raises:
        RequestError: No member has this name.
    """
    if gate not in names:
        raise RequestError(f"the gate {quote(gate)} is not a member; members are: {listed(names)}")
    return names.index(gate)


def request_weights(config: EnsembleConfig, given: Mapping[str, float] | Sequence[float] | str | None) -> list[float]:
    """Returns the weight of each member in a request, 0 or more; 1 each where the prompt decides.

    Args:
        config: The ensemble's configuration.
        given: `SamplingParams.weights`.

    Raises:
        RequestError: It names no member, has another length, leaves no weight above 0, or needs a calibration.
    """
    names = config.names
    if isinstance(given, str):
        return calibrated_weights(config) if given == "auto" else [1.0] * len(names)
    defaults = default_weights(config)
    if given is None:
        return defaults
    if isinstance(given, Mapping):
        unknown = [name for name in given if name not in names]
        if unknown:
            raise RequestError(
                f"weights names {quote(unknown[0])}, which is not a member; members are: {listed(names)}"
            )
        weights = [given.get(name, default) for name, default in zip(names, defaults, strict=True)]
    else:
        if len(given) != len(names):
            raise RequestError(f"{count_mismatch(given, len(names))}, or a mapping of names")
        weights = list(given)
    if not any(weights):
        raise RequestError(f"weights leaves no member with a weight above 0; members are: {listed(names)}")
    return weights


class EnsembleDefaults:
    """An ensemble's gate, threshold and weights, and what they come to for each request. Thread-safe.

    Args:
        config: The ensemble's configuration.
        sizes: Number of parameters of each member's model.

    Attributes:
        gate: Name of the default gate.
        reason: Why it is the gate.
    """

    def __init__(self, config: EnsembleConfig, sizes: Sequence[int]) -> None:
        self._config = config
        self._names = config.names
        self._sizes = list(sizes)
        if config.gate is None:
            index, self.reason = default_gate(default_weights(config), sizes)
            self.gate = self._names[index]
        else:
            self.gate, self.reason = config.gate, "as configured"
        self._warned: set[str] = set()

    def warn(self) -> None:
        """Logs a warning for each setting that may not be meant."""
        self._warn(self._config.gate, self._config.threshold, self._config.combine)
        found = calibrated_members(self._config)
        for name in (name for name, member in found.items() if member.hurts):
            weight = f"; its weight is {found[name].weight:g}" if self._config.weights == "auto" else ""
            logger.warning("by its calibration, the ensemble answers better without member %r%s", name, weight)

    def resolve(self, params: SamplingParams, warn: bool = True) -> RequestSettings:
        """Returns the settings of a request.

        What the parameters leave open is what `use_threshold`, `use_gate`, `use_weights` and `use_combine` set, else
        the ensemble's own.

        Args:
            params: The request's parameters.
            warn: Whether to log a warning, once for each gate, if the request of several members names a gate and no
                threshold is in force. Default True.

        Raises:
            RequestError: The gate or a name in the weights is not a member, the gate's weight is 0, the number of
                weights is wrong, or the gate rule does not fit the combination rule.
        """
        wanted = ambient_threshold("default") if params.threshold == "default" else params.threshold
        threshold = self._config.threshold if wanted == "default" else wanted
        named = ambient_gate(None) if params.gate is None else params.gate
        given = ambient_weights(None) if params.weights is None else params.weights
        weights = request_weights(self._config, given)
        source = self._config.weights if given is None else given
        gate = self._gate(named, weights, threshold)
        combine = params.combine or ambient_combine(None) or self._config.combine
        documents = params.combine_documents or self._config.combine_documents
        gate_rule = params.gate_rule or self._config.gate_rule
        check_rules(RequestError, combine, gate_rule, documents)
        members = {index: weight for index, weight in enumerate(weights) if weight > 0}
        if warn and len(members) > 1:
            self._warn(named, threshold, combine)
        if threshold == 0:
            # The gate decides every step, so that no other member participates.
            members = {gate: weights[gate]}
        return RequestSettings(
            weights=members,
            gate=gate,
            threshold=threshold,
            combine=combine,
            combine_documents=documents,
            alignment=params.alignment or self._config.alignment,
            gate_rule=gate_rule,
            by_perplexity=isinstance(source, str) and source == "perplexity" and len(members) > 1,
        )

    def _gate(self, named: str | None, weights: Sequence[float], threshold: float | None) -> int:
        """Returns the index of a request's gate, whose weight is above 0.

        A configured gate that has the weight 0 in the request is replaced by the default gate of the request's weights
        if no threshold is in force, since it would decide nothing; with a threshold it is an error. A gate that the
        call or `use_gate` names and whose weight is 0 is an error in any case.
        """
        name = self._config.gate if named is None else named
        if name is not None:
            index = gate_index(self._names, name)
            if weights[index] > 0:
                return index
            if named is not None or threshold is not None:
                raise RequestError(
                    f"the gate {quote(name)} has the weight 0 in this request; give it a weight above 0, or set gate "
                    "to another member"
                )
        return default_gate(weights, self._sizes)[0]

    def _warn(self, gate: str | None, threshold: float | None, combine: str) -> None:
        if gate is None or threshold is not None or combine == "safe" or gate in self._warned:
            return
        self._warned.add(gate)
        logger.warning(
            "gate=%r chooses no token while no threshold is in force: every step is ensembled, and the gate "
            "only determines whose tokens usage counts; set threshold=..., or leave gate out",
            gate,
        )

    def effective(
        self, params: SamplingParams, settings: RequestSettings, seed: int, documents: bool = False
    ) -> EffectiveSettings:
        """Returns what a request is answered with, for its statistics.

        Args:
            params: Its parameters.
            settings: Its settings.
            seed: Seed of its random numbers.
            documents: Whether it has documents. Default False.
        """
        shares = normalise(list(settings.weights.values()))
        return EffectiveSettings(
            threshold=settings.threshold,
            gate=self._names[settings.gate],
            weights={self._names[index]: share for index, share in zip(settings.weights, shares, strict=True)},
            alignment=settings.alignment,
            combine=settings.combine,
            combine_documents=settings.combine_documents if documents else None,
            gate_rule=settings.gate_rule,
            commit=self._config.commit,
            deterministic=self._config.deterministic,
            temperature=params.temperature,
            seed=seed if params.temperature > 0 else None,
        )
