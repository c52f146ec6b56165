"""One voice's next-token distributions at consecutive positions of a draft, complete or their most probable tokens."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.executor.messages import TopDistributions


@dataclass(frozen=True)
class TopDistribution:
    """The most probable tokens of one distribution, and a bound for all others.

    Attributes:
        ids: Union ids; by falling probability, and equal ones by rising id.
        probs: Their probabilities.
        total: The sum of all probabilities: below 1 where mass was removed.
        rest: No other token has a larger probability than this.
        end: Length of the voice's text at its position.
    """

    ids: tuple[int, ...]
    probs: tuple[float, ...]
    total: float
    rest: float
    end: int


@dataclass(frozen=True, eq=False)
class VoiceDistributions:
    """One voice's next-token distributions at consecutive positions of a draft.

    Attributes:
        probs: Float32, shape ``[positions, union]``; tokens that a grammar does not allow have no mass. May be NaN. Or
            the most probable tokens.
        ends: Length of the voice's text at each of the positions, in tokens.
        first: The position of the first of them.
        certainty: How sure the voice is at each of them, float32, shape ``[positions]``; None unless it is the gate of
            a request with a threshold.
    """

    probs: Tensor | TopDistributions
    ends: tuple[int, ...]
    first: int = 0
    certainty: Tensor | None = None

    @property
    def next_position(self) -> int:
        """The first position after them."""
        return self.first + len(self.ends)

    def at(self, position: int) -> Tensor | TopDistribution:
        """Returns the distribution at a position: shape ``[union]``, or its most probable tokens."""
        index, probs = position - self.first, self.probs
        if isinstance(probs, Tensor):
            return probs[index]
        return TopDistribution(
            ids=tuple(probs.ids[index].tolist()),
            probs=tuple(probs.probs[index].tolist()),
            total=float(probs.totals[index]),
            rest=float(probs.rest[index]),
            end=self.ends[index],
        )

    def extended(self, later: VoiceDistributions) -> VoiceDistributions:
        """Returns these distributions followed by those at the next positions."""
        certainty = None
        if self.certainty is not None and later.certainty is not None:
            certainty = torch.cat([self.certainty, later.certainty])
        return VoiceDistributions(_joined(self.probs, later.probs), self.ends + later.ends, self.first, certainty)

    def pending(self) -> VoiceDistributions | None:
        """Returns the distribution at position 0 alone; None without it."""
        if self.first:
            return None
        probs = self.probs
        first = probs[:1] if isinstance(probs, Tensor) else probs.rows(slice(1))
        return VoiceDistributions(first, self.ends[:1], 0, None if self.certainty is None else self.certainty[:1])


def _joined(earlier: Tensor | TopDistributions, later: Tensor | TopDistributions) -> Tensor | TopDistributions:
    if isinstance(earlier, Tensor):
        assert isinstance(later, Tensor), "an executor answers a request's asks in one form"
        return torch.cat([earlier, later])
    assert isinstance(later, TopDistributions), "an executor answers a request's asks in one form"
    return earlier.joined(later)
