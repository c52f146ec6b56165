"""Entropy: the reciprocal of the perplexity of the distribution.

    c = exp(-H(p)),  H(p) = -sum_t p(t) ln p(t)

1 where one token has all of the mass, 1/n where n tokens share it equally. Entropy as uncertainty is Shannon's (1948,
"A Mathematical Theory of Communication"); unlike the confidence it depends on all tokens.
"""

from __future__ import annotations

import torch
from torch import Tensor


def certainty_by_entropy(probs: Tensor, share: float | Tensor) -> Tensor:
    """Returns exp(-entropy), whatever the share; arguments as in `Gate`."""
    return torch.xlogy(probs, probs).sum(-1).exp_().clamp_(max=1)
