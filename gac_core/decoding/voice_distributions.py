"""One voice's next-token distributions at consecutive positions of a draft."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class VoiceDistributions:
    """One voice's next-token distributions at consecutive positions of a draft.

    Attributes:
        probs: Float32, shape ``[positions, union]``; tokens that a grammar does not allow have no mass. May be NaN.
        first: The position of the first of them.
        certainty: How sure the voice is at each of them, float32, shape ``[positions]``; None unless it is the gate of
            a request with a threshold.
    """

    probs: Tensor
    first: int = 0
    certainty: Tensor | None = None

    @property
    def next_position(self) -> int:
        """The first position after them."""
        return self.first + self.probs.shape[0]

    def at(self, position: int) -> Tensor:
        """Returns the distribution at a position, shape ``[union]``."""
        return self.probs[position - self.first]

    def extended(self, later: VoiceDistributions) -> VoiceDistributions:
        """Returns these distributions followed by those at the next positions."""
        certainty = None
        if self.certainty is not None and later.certainty is not None:
            certainty = torch.cat([self.certainty, later.certainty])
        return VoiceDistributions(torch.cat([self.probs, later.probs]), self.first, certainty)

    def pending(self) -> VoiceDistributions | None:
        """Returns the distribution at position 0 alone; None without it."""
        if self.first:
            return None
        return VoiceDistributions(self.probs[:1], 0, None if self.certainty is None else self.certainty[:1])
