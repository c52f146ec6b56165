"""The weighted power mean of an exponent R, also called generalised mean; "harmonic" is that of R = -1.

    p(t) = c * (sum_i w_i p_i(t) ^ R) ^ (1 / R)

Hardy, Littlewood and Pólya 1934, "Inequalities", chapter 2; as a pool of distributions Cooke 1991, "Experts in
Uncertainty", chapter 11. ``c`` scales the result to the arithmetic mean's mass. R = 1 is the arithmetic mean, and R
towards 0 the geometric mean. The larger R, the more one member's high probability counts; the smaller R, the more one
member's low probability counts.

With a negative or a small R, a probability of 0 is a veto or nearly one, also against a token outside a member's
vocabulary. Therefore, for R < 1, a member counts with a thousandth of the arithmetic mean at least, which the cited
means do not have.

The weight law holds for every R, but slowly for large ones: beside a weight of 1, a weight w changes probabilities by
about w ^ (1 / R) for R > 1 and by about w * 1000 ^ -R for R < 0. For the limits of R see `weighted_maximum` and
`weighted_minimum`, whose weights count fully.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.combination.arithmetic import arithmetic_mean

FLOOR = 1e-3
"""The least that a member counts with for a token where 0 would be a veto, relative to the arithmetic mean."""

LEAST_PROBABILITY = 2.0**-149
"""The smallest positive float32, which stands for floors that float32 rounds to 0."""

LEAST_WEIGHT = 1e-30
"""Smaller weights count as this one, since float32 cannot hold their reciprocals."""


@dataclass(frozen=True)
class PowerMean:
    """The power mean of an exponent.

    Attributes:
        exponent: R: finite, not 0.
    """

    exponent: float

    # Beyond these sizes of R, the result in float32 is that of the limit.
    LARGEST, SMALLEST = 1e30, 1e-30
    # Below this size of R, the mean of powers is so near to 1 that its difference from 1 is computed instead.
    NEAR_ZERO = 0.01

    def __call__(self, distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Returns the power mean, scaled to the arithmetic mean's mass; arguments as in `Combiner`."""
        mean = arithmetic_mean(distributions, weights)
        size = min(max(abs(self.exponent), self.SMALLEST), self.LARGEST)
        exponent = math.copysign(size, self.exponent)
        least = (mean * FLOOR).clamp_min_(LEAST_PROBABILITY) if exponent < 1 else torch.zeros_like(mean)
        logs = torch.stack([torch.maximum(part.to(mean.device), least).log_() for part in distributions])
        pivot = logs.amax(0) if exponent > 0 else logs.amin(0)
        powers = (logs - pivot).mul_(exponent)
        weights = [max(weight, LEAST_WEIGHT) for weight in weights]
        if size < self.NEAR_ZERO:
            log_mean = arithmetic_mean(list(powers.expm1_()), weights).log1p_()
        else:
            log_mean = arithmetic_mean(list(powers.exp_()), weights).log_()
        # NaN stays NaN, so that unusable logits are noticed.
        result = torch.where(mean == 0, 0.0, (pivot + log_mean / exponent).exp())
        return result * (mean.sum(-1, keepdim=True) / result.sum(-1, keepdim=True))


harmonic_mean = PowerMean(-1)
