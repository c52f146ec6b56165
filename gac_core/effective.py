"""The settings in force: the ensemble's default gate, and what one request was answered with."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence

from gac_core.combination import normalise
from gac_core.config import EnsembleConfig
from gac_core.errors import RequestError, listed, quote
from gac_core.output import EffectiveSettings
from gac_core.sampling import SamplingParams
from gac_core.settings import ambient_gate, ambient_threshold

logger = logging.getLogger(__name__)


def default_gate(weights: Sequence[float], sizes: Sequence[int]) -> tuple[int, str]:
    """Returns the index of the default gate and the reason for the choice.

    The member with the largest weight; among equal weights the largest model; among equal sizes the first.

    Args:
        weights: One per member, above 0.
        sizes: Parameters of each member's model.
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
    """Returns the index of a member that is to be the gate.

    Raises:
        RequestError: No member has this name.
    """
    if gate not in names:
        raise RequestError(f"the gate {quote(gate)} is not a member; members are: {listed(names)}")
    return names.index(gate)


class EnsembleDefaults:
    """The gate and threshold of an ensemble, and what they come to for each request; may be used from many threads.

    Args:
        config: The ensemble's configuration.
        sizes: Parameters of each member's model.

    Attributes:
        gate: Name of the gate.
        reason: Why it is the gate.
    """

    def __init__(self, config: EnsembleConfig, sizes: Sequence[int]) -> None:
        self._config = config
        self._names = config.names
        self._sizes = list(sizes)
        if config.gate is None:
            index, self.reason = default_gate([member.weight for member in config.members], sizes)
            self.gate = self._names[index]
        else:
            self.gate, self.reason = config.gate, "as configured"
        self._warned: set[str] = set()

    def log(self) -> None:
        """Logs the members, the gate and the threshold; a warning where a configured gate chooses no token."""
        members = ", ".join(
            f"{member.called} (weight {member.weight:g}, {size / 1e6:.4g}M parameters)"
            for member, size in zip(self._config.members, self._sizes, strict=True)
        )
        threshold = self._config.threshold
        mode = "no threshold: every step is ensembled" if threshold is None else f"threshold {threshold:g}"
        logger.info("members: %s; gate: %s (%s); %s", members, self.gate, self.reason, mode)
        self._warn(self._config.gate, threshold)

    def resolve(self, params: SamplingParams) -> tuple[int, float | None]:
        """Returns the index of the gate and the threshold of a request.

        What the parameters leave open is what `use_threshold` and `use_gate` set, else the ensemble's own.

        Logs a warning, once for each gate, if the request names a gate and no threshold is in force.

        Raises:
            RequestError: The gate is not a member.
        """
        wanted = ambient_threshold("default") if params.threshold == "default" else params.threshold
        threshold = self._config.threshold if wanted == "default" else wanted
        gate = ambient_gate(None) if params.gate is None else params.gate
        index = self.index(gate)
        self._warn(gate, threshold)
        return index, threshold

    def index(self, gate: str | None) -> int:
        """Returns the index of a gate; None: the ensemble's own.

        Raises:
            RequestError: The gate is not a member.
        """
        return gate_index(self._names, self.gate if gate is None else gate)

    def _warn(self, gate: str | None, threshold: float | None) -> None:
        if gate is None or threshold is not None or gate in self._warned:
            return
        self._warned.add(gate)
        logger.warning(
            "gate=%r chooses no token while no threshold is in force: every step is ensembled, and the gate "
            "only tells whose tokens usage counts; set threshold=..., or leave gate out",
            gate,
        )

    def settings(
        self, params: SamplingParams, members: Sequence[int], gate: int, threshold: float | None, seed: int
    ) -> EffectiveSettings:
        """Returns what a request is answered with.

        Args:
            params: Its parameters.
            members: Indices of the members that take part.
            gate: Index of its gate.
            threshold: Its threshold.
            seed: Seed of its random numbers.
        """
        return EffectiveSettings(
            threshold=threshold,
            gate=self._names[gate],
            weights=self._shares(members),
            alignment=self._config.alignment,
            commit=self._config.commit,
            deterministic=self._config.deterministic,
            temperature=params.temperature,
            seed=seed if params.temperature > 0 else None,
        )

    def _shares(self, members: Sequence[int]) -> Mapping[str, float]:
        shares = normalise([self._config.members[member].weight for member in members])
        return {self._names[member]: share for member, share in zip(members, shares, strict=True)}
