"""`Combiner` and `Gate`: the signatures and laws of the rules."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

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


class Gate(Protocol):
    """Measures how sure one member is; at or above the threshold it decides alone."""

    def __call__(self, probs: Tensor, share: float | Tensor) -> Tensor:
        """Returns how sure a member is at each position.

        Args:
            probs: Its distributions, float32, shape ``[positions, union]``, each with the sum 1.
            share: The member's share of the combined mass, above 0 and at most 1: its weight, normalised. Where a
                grammar removed mass, a share for each position, float32, shape ``[positions]``: the least that it can
                be, if the other members give all of their mass to tokens that the grammar allows.

        Returns:
            Float32, shape ``[positions]``, 0 to 1.
        """
        ...
