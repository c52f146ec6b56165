"""Confidence: the largest probability.

    c = max_t p(t)

GaC (arXiv 2406.12585), section 3.4.
"""

from __future__ import annotations

from torch import Tensor


def confidence(probs: Tensor, share: float | Tensor) -> Tensor:
    """Returns the largest probability, whatever the share; arguments as in `Gate`."""
    return probs.amax(-1)
