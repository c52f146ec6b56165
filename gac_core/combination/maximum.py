"""The weighted maximum: for each token the largest probability that a member gives it, times the weight.

    p(t) = c * max_i (w_i p_i(t))

Kittler et al. 1998, "On combining classifiers" (the max rule, with equal weights). Its greedy token is that of the most
confident member. The limit of `PowerMean` for R towards infinity ignores the weights; multiplying by them lets a member
of little weight decide rarely. ``c`` scales the result to the arithmetic mean's mass.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.combination.arithmetic import arithmetic_mean


def weighted_maximum(distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted maximum, scaled to the arithmetic mean's mass; arguments as in `Combiner`."""
    mean = arithmetic_mean(distributions, weights)
    parts = [part.to(mean.device) * weight for part, weight in zip(distributions, weights, strict=True)]
    result = torch.stack(parts).amax(0)
    return result * (mean.sum(-1, keepdim=True) / result.sum(-1, keepdim=True))
