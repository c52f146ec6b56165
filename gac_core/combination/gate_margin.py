"""Margin: the difference of the two largest probabilities.

    c = p_1 - p_2

Scheffer et al. 2001, "Active hidden Markov models for information extraction" (margin sampling).
"""

from __future__ import annotations

from torch import Tensor


def margin(probs: Tensor, share: float | Tensor) -> Tensor:
    """Returns the difference of the two largest probabilities, whatever the share; arguments as in `Gate`."""
    best = probs.topk(min(2, probs.shape[-1]), dim=-1).values
    return best[..., 0] - best[..., 1] if best.shape[-1] > 1 else best[..., 0]
