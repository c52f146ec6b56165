"""Penalties and bias beside the model: from what is added to logits to factors of probabilities.

    p'(t) = c * p(t) * exp(offset(t) - largest)

``largest`` is that of the tokens that the grammar allows, so that no factor is above 1, and tokens that cannot be
selected change nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from gac_core.executor.messages import LogitOffsets
from gac_core.model.transfer import moved

LEAST_EXPONENT = -80.0
"""A token whose offset is further below the largest one has the factor 0: float32 holds no such probabilities."""


def scale_probs(probs: Tensor, offsets: Sequence[LogitOffsets], mask: Tensor | None = None) -> None:
    """Multiplies distributions by the factors that follow from offsets, in place.

    Args:
        probs: Float32, shape ``[ends, union]``, contiguous; without mass where the mask does not allow a token.
        offsets: One for each end.
        mask: Which tokens a grammar allows, bool, shape ``[ends, union]``, on the CPU. Default None: all of them.
    """
    size = probs.shape[1]
    factors = [_factors(each, size, None if mask is None else mask[row]) for row, each in enumerate(offsets)]
    ids = moved(torch.cat([each.ids + row * size for row, each in enumerate(offsets)]), probs.device)
    values = moved(torch.cat([own[:-1] for own in factors]), probs.device)
    others = torch.stack([own[-1] for own in factors])
    flat = probs.view(-1)
    scaled = flat.index_select(0, ids).mul_(values)
    if bool((others != 1).any()):
        probs.mul_(moved(others, probs.device)[:, None])
    flat.index_copy_(0, ids, scaled)


def _factors(offsets: LogitOffsets, size: int, mask: Tensor | None) -> Tensor:
    """Returns the factor of each token that has an offset, and last that of all others, float32, shape ``[n + 1]``."""
    values = torch.cat([offsets.values, offsets.values.new_zeros(1)])
    if mask is None:
        allowed = torch.ones_like(values, dtype=torch.bool)
        allowed[-1] = len(offsets.ids) < size
    else:
        allowed = torch.cat([mask[offsets.ids], mask.new_zeros(1)])
        # Several times faster than a sum of torch.
        allowed[-1] = int(np.count_nonzero(mask.numpy())) > int(allowed.sum())
    if not bool(allowed.any()):
        return torch.ones_like(values, dtype=torch.float32)
    # A token that is not allowed may be above the largest one; without mass, its factor only must not overflow.
    relative = (values - values[allowed].max()).clamp_max_(0)
    return torch.where(relative < LEAST_EXPONENT, 0.0, relative.exp()).float()
