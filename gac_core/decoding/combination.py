"""How the members' distributions become one (GaC, section 3.2).

Pure functions on distributions over the union vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def arithmetic_mean(distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted mean of distributions.

    Args:
        distributions: One per member, float32, shape ``[..., union]``.
        weights: One per member; they sum to one.

    Returns:
        Float32, shape ``[..., union]``, on the first distribution's device.
    """
    total = distributions[0] * weights[0]
    for distribution, weight in zip(distributions[1:], weights[1:], strict=True):
        total = torch.add(total, distribution.to(total.device), alpha=weight)
    return total


def normalise(weights: Sequence[float]) -> list[float]:
    """Returns the weights divided by their sum."""
    # Divided by the largest first: the sum of very large weights is infinite.
    largest = max(weights)
    parts = [weight / largest for weight in weights]
    total = sum(parts)
    return [part / total for part in parts]
