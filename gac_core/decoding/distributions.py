"""The distributions of one step: which voices were evaluated, at which positions, and where that failed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.voice_distributions import VoiceDistributions
from gac_core.errors import GaCError


@dataclass(frozen=True)
class Unread:
    """A voice whose text is so long that a part of it is read in the next step."""


VoiceResult = VoiceDistributions | Unread | GaCError


@dataclass(frozen=True)
class RequestDistributions:
    """The distributions of one request.

    Attributes:
        voices: By voice its distributions.
        unread: Whether a voice has not read all of its text yet; the request continues in the next step.
        errors: By voice why there are none.
    """

    voices: Mapping[Sequence, VoiceDistributions] = field(default_factory=dict)
    unread: bool = False
    errors: Mapping[Sequence, GaCError] = field(default_factory=dict)

    @property
    def usable(self) -> bool:
        """Whether the request can be decided in this step, as far as is known."""
        return not self.errors and not self.unread

    def with_result(self, voice: Sequence, result: VoiceResult) -> RequestDistributions:
        """Returns them with one more result; later positions are appended to a voice's earlier ones."""
        if isinstance(result, GaCError):
            return replace(self, errors={**self.errors, voice: result})
        if isinstance(result, Unread):
            return replace(self, unread=True)
        earlier = self.voices.get(voice)
        merged = result if earlier is None else earlier.extended(result)
        return replace(self, voices={**self.voices, voice: merged})


@dataclass(frozen=True)
class StepDistributions:
    """The distributions of all requests of a step, by their row in the batch."""

    rows: tuple[RequestDistributions, ...]

    @classmethod
    def pending(cls, batch: Iterable[Request]) -> StepDistributions:
        """Returns the distributions that voices have from earlier steps."""
        return cls(
            tuple(
                RequestDistributions(
                    {voice: voice.pending_probs for voice in request.voices if voice.pending_probs is not None}
                )
                for request in batch
            )
        )

    def with_results(self, results: Iterable[tuple[int, Sequence, VoiceResult]]) -> StepDistributions:
        """Returns them with further results: row, voice and what came of it."""
        rows = list(self.rows)
        for row, voice, result in results:
            rows[row] = rows[row].with_result(voice, result)
        return StepDistributions(tuple(rows))
