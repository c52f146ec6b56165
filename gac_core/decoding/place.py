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
        voices: The voices that decide: all that vote, or the gate alone.
        priors: The voices that documents are compared with; none where the gate decides alone.
    """

    request: Request
    position: int
    voices: tuple[Sequence, ...]
    priors: tuple[Sequence, ...]

    @property
    def shares(self) -> list[float]:
        """The weights of the voices that decide, normalised to the sum 1."""
        return normalise([voice.weight for voice in self.voices])

    @property
    def readers(self) -> tuple[Sequence, ...]:
        """The voices that decide, then the prior's."""
        return (*self.voices, *self.priors)

    @property
    def single(self) -> bool:
        """Whether one voice's distribution is the result."""
        return len(self.voices) == 1 and not self.priors


@dataclass(frozen=True, eq=False)
class Group:
    """Voices whose distributions are combined first: those that read one document, or all where there are none.

    Attributes:
        document: Id of the document; None without one.
        indices: Of its voices in `Place.readers`.
        voices: Its voices.
        probs: Their distributions, each float32, shape ``[union]``.
        weight: The sum of their weights as a share of that of all voices that decide; 1 for the prior.
        verification: What the rule `selective_mean` needs beside the distributions; None with other rules.
    """

    document: str | None
    indices: tuple[int, ...]
    voices: tuple[Sequence, ...]
    probs: tuple[Tensor, ...]
    weight: float
    verification: Verification | None = None

    @property
    def shares(self) -> list[float]:
        """The weights of its voices, normalised to the sum 1."""
        return normalise([voice.weight for voice in self.voices])


@dataclass(frozen=True, eq=False)
class Place(_Place):
    """A place with complete distributions.

    Attributes:
        probs: The distributions of `readers`, each float32, shape ``[union]``; their sums are below 1 where mass was
            removed (`Request.removes_mass`).
        groups: The voices that decide, by document.
        prior: The voices that documents are compared with; None without any.
    """

    probs: tuple[Tensor, ...]
    groups: tuple[Group, ...]
    prior: Group | None


@dataclass(frozen=True, eq=False)
class TopPlace(_Place):
    """A place with the most probable tokens of each distribution.

    Attributes:
        tops: By voice.
    """

    tops: tuple[TopDistribution, ...]

    def completed(self, probs: Rows[Tensor]) -> Place:
        """Returns this place with complete distributions."""
        return complete_place(self.request, self.position, self.voices, self.priors, probs)


def place_of(
    request: Request,
    position: int,
    voices: tuple[Sequence, ...],
    priors: tuple[Sequence, ...],
    found: Rows[Tensor | TopDistribution],
) -> Place | TopPlace:
    """Returns the place of some voices' distributions, which all have one form.

    Args:
        request: The request.
        position: The position.
        voices: The voices that decide.
        priors: The voices that documents are compared with.
        found: What is known of the distributions of the former, then of the latter.
    """
    probs = [each for each in found if isinstance(each, Tensor)]
    if len(probs) == len(voices) + len(priors):
        return complete_place(request, position, voices, priors, probs)
    tops = tuple(each for each in found if isinstance(each, TopDistribution))
    assert len(tops) == len(voices), "an executor answers a request's asks in one form"
    return TopPlace(request, position, voices, priors, tops)


def complete_place(
    request: Request, position: int, voices: Rows[Sequence], priors: Rows[Sequence], probs: Rows[Tensor]
) -> Place:
    """Returns a place with complete distributions; arguments as in `place_of`."""
    members: dict[str | None, list[int]] = {}
    for index, voice in enumerate(voices):
        members.setdefault(voice.document, []).append(index)
    # Divided by the largest first: the sum of very large weights is infinite.
    largest = max(voice.weight for voice in voices)
    weights = [sum(voices[index].weight / largest for index in own) for own in members.values()]
    readers = (*voices, *priors)

    def group(document: str | None, indices: Rows[int], weight: float) -> Group:
        own = tuple(readers[index] for index in indices)
        return Group(document, tuple(indices), own, tuple(probs[index] for index in indices), weight)

    pairs = zip(members.items(), normalise(weights), strict=True)
    groups = tuple(group(document, indices, share) for (document, indices), share in pairs)
    prior = group(None, range(len(voices), len(readers)), 1.0) if priors else None
    return Place(request, position, tuple(voices), tuple(priors), tuple(probs), groups, prior)
