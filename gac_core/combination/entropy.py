"""Entropies of single distributions over the union."""

from __future__ import annotations

import torch
from torch import Tensor


def log_moment(probs: Tensor) -> Tensor:
    """Returns the sum of ``p * log(p)``, with 0 for ``p = 0``: the negative entropy of a distribution with the sum 1.

    Several times faster than ``torch.special.entr`` on a CPU.

    Args:
        probs: Float, shape ``[union]``.

    Returns:
        A scalar in nats, on the device of ``probs``.
    """
    return torch.dot(probs, probs.clamp_min(torch.finfo(probs.dtype).tiny).log_())
