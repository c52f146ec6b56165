"""Consensus: how far the gate's lead is from being one that the other members cannot make up for.

    c = min(1, w (p_1 - p_2) / (1 - w + 0.0001))

``w`` is the gate's share of the weights, ``p_1`` and ``p_2`` are its two largest probabilities. In the arithmetic mean,
the gate's token leads each other one by ``w (p_1 - p_2)`` or more before the other members are counted, and these can
give no token more than ``1 - w``. So where c = 1, the gate's token is the most probable one of the mean whatever the
others compute: with the threshold 1, the gate decides alone exactly where that is certain, and every greedy token is
that of ensembling every step. The 0.0001 covers ties and the rounding of float32. Smaller thresholds trade that
certainty for cost.

A gate with half of the weights or less never decides alone at the threshold 1. Drawn tokens (``temperature`` above 0)
come from the gate's distribution where it decides alone, so that for them nothing is certain. The idea is that of early
exit from a majority vote (as in adaptive-consistency, Aggarwal et al. 2023, arXiv 2305.11860), without its estimate.
"""

from __future__ import annotations

from torch import Tensor

from gac_core.combination.gate_margin import margin

SLACK = 1e-4
"""More than float32 rounds: the sums of distributions, the mean, and the same text in another batch (1e-6)."""


def consensus(probs: Tensor, share: float | Tensor) -> Tensor:
    """Returns how certain it is that the gate's token wins in the arithmetic mean; arguments as in `Gate`.

    With a share of 1, there is no other member, and it is certain.
    """
    certain = margin(probs, share) * share / (1 - share + SLACK)
    return (certain + (share >= 1)).clamp_(max=1)
