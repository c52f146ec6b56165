"""`Place`: one position of one request at which a token is selected."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

from torch import Tensor

from gac_core.combination import Verification
from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.voice_distributions import TopDistribution
from gac_core.shares import normalise


@dataclass(frozen=True, eq=False)
class _Place:
    """One position of one request at which a token is selected.

    Attributes:
        request: The request.
        position: The position; 0 is the end of the committed text.
        voices: The voices that decide: all, or the gate alone.
    """

    request: Request
    position: int
    voices: tuple[Sequence, ...]

    @property
    def shares(self) -> list[float]:
        """The voices' weights, normalised to the sum 1."""
        return normalise([voice.weight for voice in self.voices])


@dataclass(frozen=True, eq=False)
class Place(_Place):
    """A place with complete distributions.

    Attributes:
        probs: The voices' distributions, each float32, shape ``[union]``; their sums are below 1 where mass was
            removed (`Request.removes_mass`).
        verification: What the rule `selective_mean` needs beside them; None with other rules.
    """

    probs: tuple[Tensor, ...]
    verification: Verification | None = None


@dataclass(frozen=True, eq=False)
class TopPlace(_Place):
    """A place with the most probable tokens of each distribution.

    Attributes:
        tops: By voice.
    """

    tops: tuple[TopDistribution, ...]

    def completed(self, probs: Rows[Tensor]) -> Place:
        """Returns this place with complete distributions."""
        return Place(self.request, self.position, self.voices, tuple(probs))


def place_of(
    request: Request, position: int, voices: tuple[Sequence, ...], found: Rows[Tensor | TopDistribution]
) -> Place | TopPlace:
    """Returns the place of some voices' distributions, which all have one form."""
    probs = tuple(each for each in found if isinstance(each, Tensor))
    if len(probs) == len(voices):
        return Place(request, position, voices, probs)
    tops = tuple(each for each in found if isinstance(each, TopDistribution))
    assert len(tops) == len(voices), "an executor answers a request's asks in one form"
    return TopPlace(request, position, voices, tops)
