"""The likelihood of a request's text, which its members read in parts before anything is generated."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from gac_core.decoding.sequence import Sequence
from gac_core.executor.messages import Targets
from gac_core.likelihood import Likelihood
from gac_core.model.chunk import Chunk, KeptPrefix

MAX_LOGIT_BYTES = 2**27
"""Bytes of logits, counted as float32, that one member computes for measurements in one step at most."""

MIN_PART = 16
"""Tokens of a text that a member measures in one step at least."""


@dataclass(frozen=True)
class Part:
    """Ids of one voice's text that are read next.

    Attributes:
        start: Position of the first.
        end: Position after the last.
        targets: The tokens whose log-probabilities are wanted; none where the ids precede the first of them.
        keep: The beginning of the text that is kept. Default: nothing.
    """

    start: int
    end: int
    targets: Targets
    keep: KeptPrefix | None = None


@dataclass(eq=False)
class VoiceMeasurement:
    """How far one voice's text is measured.

    Attributes:
        first: Position of the first id whose probability counts, 1 or more.
        temperatures: Temperatures at which it is measured.
        measured: Position after the last id that was counted.
        logprobs: The sum so far at each temperature.
    """

    first: int
    temperatures: tuple[float, ...]
    measured: int = field(init=False)
    logprobs: list[float] = field(init=False)

    def __post_init__(self) -> None:
        self.measured, self.logprobs = self.first, [0.0] * len(self.temperatures)

    def next_part(self, voice: Sequence, size: int) -> Part:
        """Returns what is read next: all before the first target at once, then parts that end at multiples of a size.

        Args:
            voice: The voice.
            size: Tokens of a part.
        """
        ids, start = voice.text.token_ids, voice.text.chunk_start
        if start < self.measured - 1:
            return Part(start, self.measured - 1, Targets((), self.temperatures))
        end = min(len(ids) - 1, start + size - start % size)
        return Part(start, end, Targets(tuple(ids[start + 1 : end + 1]), self.temperatures))

    def add(self, part: Part, values: tuple[tuple[float, ...], ...]) -> None:
        """Adds the log-probabilities of a part's targets."""
        self.logprobs = [total + sum(own) for total, own in zip(self.logprobs, values, strict=True)]
        self.measured += len(part.targets.ids)

    def is_done(self, voice: Sequence) -> bool:
        """Whether all ids of the voice's text are measured."""
        return self.measured == len(voice.text.token_ids)


@dataclass(eq=False)
class Measurement:
    """How far a request's text is measured.

    Attributes:
        voices: By voice.
        part_tokens: Tokens that a member reads in one part at most.
        sets_weights: Whether the voices' weights follow from it, and the request generates a text then. Otherwise it
            ends there.
    """

    voices: Mapping[Sequence, VoiceMeasurement]
    part_tokens: int
    sets_weights: bool

    def is_done(self, voices: list[Sequence]) -> bool:
        """Whether some voices' texts are measured."""
        return all(self.voices[voice].is_done(voice) for voice in voices)

    def likelihoods(self, voices: list[Sequence]) -> dict[str, tuple[Likelihood, ...]]:
        """Returns the likelihood of some voices' texts, by name, at each temperature."""
        found: dict[str, tuple[Likelihood, ...]] = {}
        for voice in voices:
            own = self.voices[voice]
            counted = voice.text.token_ids[own.first :]
            size = len(voice.member.tokenizer.decode(counted))
            found[voice.name] = tuple(Likelihood(logprob, len(counted), size) for logprob in own.logprobs)
        return found


def chunk_of(voice: Sequence, part: Part) -> Chunk:
    """Returns the message for a part of a voice's text."""
    ids = tuple(voice.text.token_ids[part.start : part.end])
    images = voice.text.images_from(part.start)
    return Chunk(voice.cache_id, part.start, ids, len(part.targets.ids), images, part.keep)


def part_size(voice: Sequence, part_tokens: int) -> int:
    """Returns how many tokens of a voice's text a member measures in one step at most.

    Args:
        voice: The voice.
        part_tokens: The limit for any member.
    """
    return max(MIN_PART, min(part_tokens, MAX_LOGIT_BYTES // (4 * voice.member.tokenizer.rows)))
