"""The weighted minimum: for each token the smallest probability that a member gives it, divided by the weight.

    p(t) = c * min_i (p_i(t) / w_i)

Kittler et al. 1998, "On combining classifiers" (the min rule, with equal weights). The limit of `PowerMean` for R
towards minus infinity ignores the weights; dividing by them lets a member of little weight decide rarely. ``c`` scales
the result to the arithmetic mean's mass.

A member counts with a thousandth of the arithmetic mean at least, so that a token outside its vocabulary is not vetoed.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.combination.arithmetic import arithmetic_mean
from gac_core.combination.power import FLOOR, LEAST_WEIGHT


def weighted_minimum(distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted minimum, scaled to the arithmetic mean's mass; arguments as in `Combiner`."""
    mean = arithmetic_mean(distributions, weights)
    least = mean * FLOOR
    parts = [
        torch.maximum(part.to(mean.device), least) / max(weight, LEAST_WEIGHT)
        for part, weight in zip(distributions, weights, strict=True)
    ]
    result = torch.stack(parts).amin(0)
    return result * (mean.sum(-1, keepdim=True) / result.sum(-1, keepdim=True))
