"""The rules by the names that select them (`EnsembleConfig.combine`, `EnsembleConfig.gate_rule`)."""

from __future__ import annotations

import math
import re

from gac_core.checks import check_option
from gac_core.combination.arithmetic import arithmetic_mean
from gac_core.combination.core import consistent_mean
from gac_core.combination.gate_confidence import confidence
from gac_core.combination.gate_consensus import consensus
from gac_core.combination.gate_entropy import certainty_by_entropy
from gac_core.combination.gate_margin import margin
from gac_core.combination.geometric import geometric_mean
from gac_core.combination.interface import Combiner, Gate
from gac_core.combination.maximum import weighted_maximum
from gac_core.combination.minimum import weighted_minimum
from gac_core.combination.power import PowerMean, harmonic_mean
from gac_core.combination.safe import selective_mean
from gac_core.errors import GaCError, quote

COMBINERS: dict[str, Combiner] = {
    "arithmetic": arithmetic_mean,
    "geometric": geometric_mean,
    "harmonic": harmonic_mean,
    "min": weighted_minimum,
    "max": weighted_maximum,
    "core": consistent_mean,
    "safe": selective_mean,
}
"""Combination rules by name; beside these, ``"power:R"`` is `PowerMean` with the exponent R."""

POWER = "power:R"
"""The form of a power mean's name."""

CERTIFIABLE: frozenset[Combiner] = frozenset({arithmetic_mean})
"""Rules whose greedy token can be proven from the most probable tokens of each distribution (`decoding.certificate`).

Such a rule is linear: the result for a token is a weighted sum of its own probabilities, and so is the result's mass of
the masses. Requests with another rule need complete distributions.
"""

GATES: dict[str, Gate] = {
    "confidence": confidence,
    "margin": margin,
    "entropy": certainty_by_entropy,
    "consensus": consensus,
}


def combiner_named(name: str) -> Combiner:
    """Returns the combination rule of a name that `check_combine` accepts."""
    rule = COMBINERS.get(name) or _power_mean(name)
    assert rule is not None, "the name was checked"
    return rule


def gate_named(name: str) -> Gate:
    """Returns the gate rule of a name that `check_gate_rule` accepts."""
    return GATES[name]


def _power_mean(name: str) -> PowerMean | None:
    number = re.fullmatch(r"power:([+-]?\d+(\.\d+)?(e[+-]?\d+)?)", name)
    exponent = float(number[1]) if number else 0.0
    return PowerMean(exponent) if exponent and math.isfinite(exponent) else None


def check_combine(error: type[GaCError], value: object) -> str:
    """Returns the name of a combination rule; raises an error of a class, with the known names, if unknown."""
    if isinstance(value, str) and (value in COMBINERS or _power_mean(value)):
        return str.__str__(value)
    names = ", ".join(quote(name) for name in COMBINERS)
    raise error(
        f"combine must be one of {names}, or {quote(POWER)} with R a finite number other than 0, such as 'power:0.5', "
        f"not {quote(value)}"
    )


def check_gate_rule(error: type[GaCError], value: object) -> str:
    """Returns the name of a gate rule; raises an error of a class, with the known names, if unknown."""
    return check_option(error, "gate_rule", value, tuple(GATES))


def check_rules(error: type[GaCError], combine: str | None, gate_rule: str | None) -> None:
    """Raises an error of a class if a gate rule has no meaning with a combination rule; None: not given."""
    if gate_rule == "consensus" and combine not in (None, "arithmetic"):
        raise error(
            "gate_rule='consensus' tells what is certain in combine='arithmetic' alone, not in "
            f"combine={quote(combine)}; give gate_rule='confidence', or combine='arithmetic'"
        )
