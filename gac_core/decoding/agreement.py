"""How far several distributions over the union agree.

Pure functions on tensors. Distributions may sum to less than one: a grammar removes the mass of the tokens that it does
not allow. Each then counts with its share of the mass that is left, as it does in the combined distribution.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.combination.entropy import log_moment


def agreement(distributions: Sequence[Tensor], chosen: Sequence[Tensor]) -> Tensor:
    """Returns the share of distributions whose most probable token is the chosen one.

    Args:
        distributions: One per member, float, shape ``[union]``, on any devices.
        chosen: The chosen token's probability in each of them, shape ``[1]``, all on one device.

    Returns:
        A number from 0 to 1, shape ``[1]``, on the device of ``chosen``. Of several most probable tokens each counts;
        a distribution without any mass agrees with no token.
    """
    own = torch.cat(list(chosen))
    tops = torch.stack([each.amax().to(own.device) for each in distributions])
    return ((own >= tops) & (own > 0)).float().mean(0, keepdim=True)


def jensen_shannon(distributions: Sequence[Tensor], weights: Sequence[float], mean: Tensor) -> Tensor:
    """Returns the weighted Jensen-Shannon divergence: the entropy of the mean less the mean of the entropies.

    Args:
        distributions: One per member, float32, shape ``[union]``, on any devices.
        weights: One per member; they sum to one.
        mean: The weighted mean of the distributions, normalised, shape ``[union]``.

    Returns:
        Nats (natural logarithm), shape ``[1]``, on the device of ``mean``: 0 (up to rounding, about 1e-6) for equal
        distributions, at most the logarithm of their number. A distribution of mass s, as a grammar left it, counts
        normalised, with the weight w * s.
    """
    inner = [torch.stack([each.sum(), log_moment(each)]).to(mean.device).double() for each in distributions]
    total, mass = -log_moment(mean).double(), torch.zeros_like(inner[0][0])
    entropies = torch.zeros_like(mass)
    for weight, (own_mass, own_moment) in zip(weights, inner, strict=True):
        mass = mass + weight * own_mass
        entropies = entropies + weight * (torch.xlogy(own_mass, own_mass) - own_moment)
    return (total - entropies / mass).clamp_min(0).reshape(1)
