"""CoRE: members count less for tokens on which they differ from the mean, and less where they are uncertain.

    p(t)   = c * sum_i w_i m_i s_i(t) p_i(t)
    s_i(t) = (exp(-2 d_i(t)) - exp(-2)) / (1 - exp(-2)),  d_i(t) = |p_i(t) - q(t)|,  q = sum_i w_i p_i
    m_i    = sum_t q(t) s_i(t) / (H(p_i) + 0.1)

Zeng et al. 2025, "Harnessing Consistency for Robust Test-Time LLM Ensemble" (arXiv 2510.13855): ``s_i`` is its
token-level consistency, the low-pass filter with the RBF kernel, and ``m_i`` its model-level consistency, agreement
divided by entropy in nats. ``c`` scales the result to the arithmetic mean's mass. Where this departs from the paper and
its code:

- All members are alike. There, one of them is the main model: its probabilities are not filtered, and its ``m_i`` is at
  least the sum of the others'.
- The configured weights multiply ``m_i``, and ``q`` is the mean with these weights; there, it has equal ones.
- Distributions are complete. There, each is cut to its 10 most probable tokens, ``m_i`` sums ``s_i`` over these without
  the factor ``q``, and ``s_i`` is divided by its mean over them, which would cancel that sum here.
- 0.1 is added to the entropy, there 1e-12: a member that is certain would outweigh all others whatever their weights.
- A token of the mean that begins with the main model's token, or the reverse, is not replaced by the latter.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.combination.arithmetic import arithmetic_mean

SHARPNESS = 2.0
"""Factor of the differences in the kernel: at a difference of 1, the largest, nothing of a token is left."""

LEAST_ENTROPY = 0.1
"""Added to entropies, in nats."""


def consistent_mean(distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the mean weighted by consistency, scaled to the arithmetic mean's mass; arguments as in `Combiner`."""
    mean = arithmetic_mean(distributions, weights)
    mass = mean.sum(-1, keepdim=True)
    result = mean * 0
    for distribution, weight in zip(distributions, weights, strict=True):
        probs = distribution.to(mean.device)
        consistency = token_consistency(probs, mean)
        agreement = (mean * consistency).sum(-1, keepdim=True) / mass
        result += probs * consistency * (weight * agreement / (entropy(probs) + LEAST_ENTROPY))
    return result * (mass / result.sum(-1, keepdim=True))


def token_consistency(probs: Tensor, mean: Tensor) -> Tensor:
    """Returns how much each token's probability counts, 0 to 1: 1 where it is that of the mean."""
    end = math.exp(-SHARPNESS)
    return ((probs - mean).abs_().mul_(-SHARPNESS).exp_() - end) / (1 - end)


def entropy(probs: Tensor) -> Tensor:
    """Returns the entropy of distributions whose mass may be below one, in nats, shape ``[..., 1]``; 0 without mass."""
    totals = probs.sum(-1, keepdim=True)
    normalised = probs / totals.masked_fill(totals == 0, 1.0)
    return -torch.xlogy(normalised, normalised).sum(-1, keepdim=True)
