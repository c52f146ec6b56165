"""The rules by the names that select them (`EnsembleConfig.combine`, `EnsembleConfig.gate_rule`)."""

from __future__ import annotations

from gac_core.combination.arithmetic import arithmetic_mean
from gac_core.combination.gate_confidence import confidence
from gac_core.combination.gate_margin import margin
from gac_core.combination.geometric import geometric_mean
from gac_core.combination.interface import Combiner, Gate

COMBINERS: dict[str, Combiner] = {"arithmetic": arithmetic_mean, "geometric": geometric_mean}

CERTIFIABLE: frozenset[Combiner] = frozenset({arithmetic_mean})
"""Rules whose greedy token can be proven from the most probable tokens of each distribution (`decoding.certificate`).

Such a rule is linear: the result for a token is a weighted sum of its own probabilities, and so is the result's mass of
the masses. Requests with another rule need complete distributions.
"""

GATES: dict[str, Gate] = {"confidence": confidence, "margin": margin}


def combiner_named(name: str) -> Combiner:
    """Returns the combination rule of a valid name."""
    return COMBINERS[name]


def gate_named(name: str) -> Gate:
    """Returns the gate rule of a valid name."""
    return GATES[name]
