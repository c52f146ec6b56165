"""The weighted geometric mean, also called logarithmic opinion pool or product of experts.

    p(t) = c * prod_i p_i(t) ^ w_i

Heskes 1998, "Selecting weighting factors in logarithmic opinion pools"; Hinton 2002, "Training products of experts by
minimizing contrastive divergence". ``c`` scales the result to the arithmetic mean's mass. A probability of 0, such as
that of a token outside a member's vocabulary, is replaced by the smallest positive float32.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.combination.arithmetic import arithmetic_mean


def geometric_mean(distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted geometric mean, scaled to the arithmetic mean's mass; arguments as in `Combiner`.

    A token needs probability from every member. The floor lets the result approach one member's distribution as the
    other weights approach 0.
    """
    mean = arithmetic_mean(distributions, weights)
    smallest = torch.finfo(mean.dtype).tiny
    logs = torch.zeros_like(mean)
    for distribution, weight in zip(distributions, weights, strict=True):
        logs.add_(distribution.to(mean.device).clamp_min(smallest).log_(), alpha=weight)
    # NaN stays NaN, so that unusable logits are noticed.
    logs = torch.where(mean == 0, float("-inf"), logs)
    return torch.softmax(logs, dim=-1) * mean.sum(-1, keepdim=True)
