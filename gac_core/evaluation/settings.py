"""Settings to compare: a member alone, every step with some weights, a threshold, or several samples of a member."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from gac_core.calibration_file import WEIGHT_SOURCES
from gac_core.checks import check_int
from gac_core.errors import listed, quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.sampling import SamplingParams

Weights = Sequence[float] | str
"""One weight per member; or where they come from, as `SamplingParams.weights`."""


@dataclass(frozen=True)
class Setting:
    """One way to answer all questions.

    Attributes:
        label: Its name in results and reports; made by the functions of this module.
        weights: Weight of each member, 0 or more; or ``"perplexity"`` or ``"auto"``, as in `SamplingParams`. None:
            those of the ensemble.
        threshold: None: every step is ensembled. 0: the gate alone.
        gate: Name of the gate; None without a threshold.
        combine: As `SamplingParams.combine`. None: the ensemble's.
        gate_rule: As `SamplingParams.gate_rule`. None: the ensemble's.
        samples: Answers per question, of which the most frequent one counts. Default 1.
        temperature: Temperature of the samples. Default 0: greedy.
    """

    label: str
    # A mapping cannot be hashed; equal settings still have equal hashes.
    weights: Mapping[str, float] | str | None = field(default=None, hash=False)
    threshold: float | None = None
    gate: str | None = None
    combine: str | None = None
    gate_rule: str | None = None
    samples: int = 1
    temperature: float = 0.0

    def __post_init__(self) -> None:
        check_int(EvaluationError, "samples", self.samples, 1)
        if self.samples > 1 and self.temperature == 0:
            raise EvaluationError(f"samples={self.samples} need a temperature above 0: greedy answers are all the same")
        if self.threshold is not None and self.gate is None:
            raise EvaluationError(f"the setting {quote(self.label)} has a threshold and no gate; name the gate")
        SamplingParams(**self.overrides())

    @property
    def alone(self) -> str | None:
        """The member that answers alone; None where several do."""
        return self.gate if self.threshold == 0 else None

    @property
    def shown_weights(self) -> str:
        """The weights in the format of the command line, ``1:2:4``; empty for those of the ensemble."""
        return show_weights([*self.weights.values()]) if isinstance(self.weights, Mapping) else self.weights or ""

    @property
    def is_ensemble(self) -> bool:
        """Whether several members may decide."""
        return self.alone is None

    def overrides(self) -> dict[str, Any]:
        """Returns the parameters of `SamplingParams` that the setting determines."""
        return {
            "weights": self.weights,
            "threshold": self.threshold,
            "gate": self.gate,
            "combine": self.combine,
            "gate_rule": self.gate_rule,
            "temperature": self.temperature,
        }

    def as_dict(self) -> dict[str, Any]:
        """Returns the fields as plain values."""
        return asdict(self)


def alone(member: str) -> Setting:
    """Returns the setting of one member alone."""
    return Setting(member, threshold=0.0, gate=member)


def every_step(names: Sequence[str], weights: Weights | None = None, combine: str | None = None) -> Setting:
    """Returns a setting that ensembles every step.

    Args:
        names: The members' names.
        weights: One per member, or the name of their source. Default: the ensemble's own.
        combine: As `SamplingParams.combine`. Default: the ensemble's.
    """
    return Setting(f"every step{_shown(weights, combine)}", _by_name(names, weights), combine=combine)


def thresholded(
    names: Sequence[str],
    gate: str,
    threshold: float,
    weights: Weights | None = None,
    combine: str | None = None,
    gate_rule: str | None = None,
) -> Setting:
    """Returns a setting in which the gate decides alone at or above a threshold; arguments as in `every_step`."""
    rule = f", {gate_rule}" if gate_rule else ""
    label = f"gate {gate} at {threshold:g}{rule}{_shown(weights, combine)}"
    return Setting(label, _by_name(names, weights), threshold, gate, combine, gate_rule)


def self_consistency(member: str, samples: int, temperature: float = 0.7) -> Setting:
    """Returns the setting of several samples of one member and a majority vote (Wang et al. 2022)."""
    label = f"{samples} samples of {member}"
    return Setting(label, threshold=0.0, gate=member, samples=samples, temperature=temperature)


def show_weights(weights: Sequence[float]) -> str:
    """Returns weights in the format of the command line, ``1:2:4``."""
    return ":".join(f"{weight:g}" for weight in weights)


def parse_weights(text: str, names: Sequence[str]) -> tuple[float, ...]:
    """Parses ``1:2:4``, one number per member.

    Raises:
        EvaluationError: It is not one number, 0 or more, per member, or all are 0.
    """
    try:
        weights = tuple(float(part) for part in text.split(":"))
    except ValueError:
        weights = ()
    if len(weights) == len(names) and not any(weights):
        raise EvaluationError(f"weights {text}: one of them must be above 0, or no member decides anything")
    if len(weights) != len(names) or any(weight < 0 for weight in weights):
        raise EvaluationError(
            f"weights must be {len(names)} numbers joined by colons, one per member ({listed(names)}), such as "
            f"{show_weights(range(1, len(names) + 1))}, not {quote(text)}"
        )
    return weights


def parse_source(text: str, names: Sequence[str]) -> Weights:
    """Parses ``1:2:4``, or returns the name of a source, such as ``perplexity``; errors as in `parse_weights`."""
    return text if text in WEIGHT_SOURCES else parse_weights(text, names)


def _by_name(names: Sequence[str], weights: Weights | None) -> dict[str, float] | str | None:
    return weights if weights is None or isinstance(weights, str) else dict(zip(names, weights, strict=True))


def _shown(weights: Weights | None, combine: str | None) -> str:
    shown = weights if weights is None or isinstance(weights, str) else show_weights(weights)
    return (f", {combine}" if combine else "") + (f", weights {shown}" if shown else "")
