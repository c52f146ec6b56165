"""Mean: the weighted mean over documents.

    p(t) = sum_k r_k p_k(t)

``r_k`` is the weight of document k: the marginalisation over documents of RAG-Token (Lewis et al. 2020, arXiv
2005.11401, section 2.1) and of REPLUG (Shi et al. 2023, arXiv 2301.12652, section 3.2).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.combination.arithmetic import arithmetic_mean
from gac_core.combination.documents.interface import Votes


def document_mean(distributions: Sequence[Tensor], weights: Sequence[float], prior: Tensor | None) -> Votes:
    """Returns the weighted mean, whatever the prior; arguments as in `DocumentRule`."""

    def parts(tokens: Tensor) -> Tensor:
        pairs = zip(distributions, weights, strict=True)
        return torch.stack([probs[tokens.to(probs.device)].to(tokens.device) * weight for probs, weight in pairs])

    return Votes(arithmetic_mean(distributions, weights), parts)
