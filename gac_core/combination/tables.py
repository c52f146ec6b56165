"""The rules by the names that select them (`EnsembleConfig.combine`, `EnsembleConfig.gate_rule`)."""

from __future__ import annotations

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
from gac_core.rule_names import power_exponent

COMBINERS: dict[str, Combiner] = {
    "arithmetic": arithmetic_mean,
    "geometric": geometric_mean,
    "harmonic": harmonic_mean,
    "min": weighted_minimum,
    "max": weighted_maximum,
    "core": consistent_mean,
    "safe": selective_mean,
}
"""Combination rules by name; beside these, ``"power:R"`` is `PowerMean` with the exponent R.

Rules may be added to it and to `GATES`. The names of those here are also in `gac_core.rule_names`, which is checked
before torch is imported.
"""

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
    exponent = power_exponent(name)
    return COMBINERS[name] if exponent is None else PowerMean(exponent)


def gate_named(name: str) -> Gate:
    """Returns the gate rule of a name that `check_gate_rule` accepts."""
    return GATES[name]
