"""The weighted arithmetic mean, also called linear opinion pool: the rule of the paper.

    p(t) = sum_i w_i p_i(t)

Yu et al. 2024, "Breaking the Ceiling of the LLM Community by Treating Token Generation as a Classification for
Ensembling" (GaC, arXiv 2406.12585), section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def arithmetic_mean(distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted arithmetic mean (GaC, section 3.2); arguments as in `Combiner`."""
    total = distributions[0] * weights[0]
    for distribution, weight in zip(distributions[1:], weights[1:], strict=True):
        total = torch.add(total, distribution.to(total.device), alpha=weight)
    return total
