"""Confidence: the mean over documents, each weighted by how certain the next token is with it.

    p(t) = c * sum_k r_k c_k p_k(t),  c_k = exp(-H(p_k))

``r_k`` is the weight of document k, and ``c_k`` the reciprocal of its distribution's perplexity: 1 where one token has
all of the mass, 1/n where n tokens share it equally. ``c`` scales the result to the mean's mass. A document that does
not contain the answer leaves the member uncertain, and counts less.

Qiu et al. 2024, "Entropy-Based Decoding for Retrieval-Augmented Large Language Models" (arXiv 2406.17519), weight
documents by the softmax of the negative entropy: ``c_k`` is that with the temperature 1. Where this departs from it:

- The weights of the documents multiply ``c_k``; there, they have none.
- The mean is arithmetic, as in the rule "mean"; there, it is that of the logarithms.
- There is no contrast with the distribution of another layer.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.combination.documents.interface import Votes
from gac_core.combination.entropy import log_moment


def confident_mean(distributions: Sequence[Tensor], weights: Sequence[float], prior: Tensor | None) -> Votes:
    """Returns the mean weighted by certainty, whatever the prior; arguments as in `DocumentRule`."""
    device = distributions[0].device
    shares = torch.tensor(weights, dtype=torch.float32, device=device)
    masses = torch.stack([probs.sum().to(device) for probs in distributions])
    moments = torch.stack([log_moment(probs).to(device) for probs in distributions])
    # The entropy of what remains, normalised, where a grammar removed mass; 0 without any mass.
    present = masses.masked_fill(masses == 0, 1.0)
    certainties = (moments / present - present.log()).exp()
    scales = shares * certainties
    scales = scales / scales.sum()
    total = (scales * masses).sum()
    scales = scales * ((shares * masses).sum() / total.masked_fill(total == 0, 1.0))

    combined = distributions[0] * scales[0]
    for probs, scale in zip(distributions[1:], scales[1:], strict=True):
        combined.addcmul_(probs.to(device), scale)

    def parts(tokens: Tensor) -> Tensor:
        own = torch.stack([probs[tokens.to(probs.device)].to(device) for probs in distributions])
        return own * scales[:, None]

    return Votes(combined, parts)
