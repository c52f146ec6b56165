"""How the members' distributions become one, and when one of them decides alone.

Pure functions on distributions over the union vocabulary. `COMBINERS` and `GATES` are the rules that
`EnsembleConfig.combine`, `EnsembleConfig.gate_rule` and the parameters of the same names select. To add a rule, write a
function and put it into the table.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor


class Combiner(Protocol):
    """Combines distributions into one.

    Every rule obeys two laws. As one weight approaches 1, the result approaches that distribution. Equal distributions
    give the same distribution with the same mass, whatever their weights.
    """

    def __call__(self, distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
        """Returns the combined distribution.

        Args:
            distributions: At least one, float32, shape ``[..., union]``, on any devices. Where a grammar removed mass,
                their sums are below one.
            weights: One per distribution, above 0; they sum to one.

        Returns:
            Float32, shape ``[..., union]``, on the first distribution's device. The probability of a token is 0 if it
            is 0 in every distribution. The sum is one if those of all distributions are; else it may be below one, and
            the caller normalises it.
        """
        ...


def arithmetic_mean(distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted arithmetic mean (GaC, section 3.2); arguments as in `Combiner`."""
    total = distributions[0] * weights[0]
    for distribution, weight in zip(distributions[1:], weights[1:], strict=True):
        total = torch.add(total, distribution.to(total.device), alpha=weight)
    return total


def geometric_mean(distributions: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns the weighted geometric mean, scaled to the arithmetic mean's mass; arguments as in `Combiner`.

    Also called logarithmic opinion pool or product of experts (Heskes 1998; Hinton 2002): a token needs probability
    from every member. A token that a member cannot write has the smallest positive float32 in its place, so that the
    result still approaches one member's distribution as the other weights approach 0.
    """
    mean = arithmetic_mean(distributions, weights)
    smallest = torch.finfo(mean.dtype).tiny
    logs = torch.zeros_like(mean)
    for distribution, weight in zip(distributions, weights, strict=True):
        logs.add_(distribution.to(mean.device).clamp_min(smallest).log_(), alpha=weight)
    # NaN stays NaN, so that unusable logits are noticed.
    logs = torch.where(mean == 0, float("-inf"), logs)
    return torch.softmax(logs, dim=-1) * mean.sum(-1, keepdim=True)


COMBINERS: dict[str, Combiner] = {"arithmetic": arithmetic_mean, "geometric": geometric_mean}

CERTIFIABLE: frozenset[Combiner] = frozenset({arithmetic_mean})
"""Rules whose greedy token can be proven from the most probable tokens of each distribution (`decoding.certificate`).

Such a rule is linear: the result for a token is a weighted sum of its own probabilities, and so is the result's mass of
the masses. Requests with another rule need complete distributions.
"""


class Gate(Protocol):
    """Measures how sure one member is; at or above the threshold it decides alone."""

    def __call__(self, probs: Tensor) -> Tensor:
        """Returns how sure a member is at each position.

        Args:
            probs: Its distributions, float32, shape ``[positions, union]``, each with the sum 1.

        Returns:
            Float32, shape ``[positions]``, 0 to 1.
        """
        ...


def confidence(probs: Tensor) -> Tensor:
    """Returns the largest probability (GaC, section 3.4); arguments as in `Gate`."""
    return probs.amax(-1)


def margin(probs: Tensor) -> Tensor:
    """Returns the difference of the two largest probabilities; arguments as in `Gate`."""
    best = probs.topk(min(2, probs.shape[-1]), dim=-1).values
    return best[..., 0] - best[..., 1] if best.shape[-1] > 1 else best[..., 0]


GATES: dict[str, Gate] = {"confidence": confidence, "margin": margin}


def normalise(weights: Sequence[float]) -> list[float]:
    """Returns the weights divided by their sum."""
    # Divided by the largest first: the sum of very large weights is infinite.
    largest = max(weights)
    parts = [weight / largest for weight in weights]
    total = sum(parts)
    return [part / total for part in parts]
