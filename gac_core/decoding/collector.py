"""Asks the members for the distributions of a batch of queries, and records what they computed."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable, Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.decoding.absence import rejoin
from gac_core.decoding.distributions import Unread, VoiceResult
from gac_core.decoding.draft_sequence import DraftSequence
from gac_core.decoding.ensemble_member import together
from gac_core.decoding.measurement import Part, chunk_of
from gac_core.decoding.request import Request
from gac_core.decoding.sequence import Sequence
from gac_core.decoding.voice_distributions import VoiceDistributions
from gac_core.errors import GaCError, InvalidLogitsError
from gac_core.executor.base import Executor
from gac_core.executor.messages import Answer, Ask, Failure, Fetch, LogitOffsets, TargetLogprobs
from gac_core.failures import member_failure, request_failure
from gac_core.model.chunk import Chunk


@dataclass(frozen=True, eq=False)
class Query:
    """Which distributions of one voice are wanted.

    Attributes:
        row: The request's row in the batch.
        request: The request.
        voice: The voice.
        draft: The draft whose positions are wanted; None: position 0 alone.
        first: The first position wanted; all up to the draft's last one are.
    """

    row: int
    request: Request
    voice: Sequence
    draft: DraftSequence | None = None
    first: int = 0

    @property
    def ends(self) -> tuple[int, ...]:
        """Lengths of the voice's text at the positions wanted."""
        if self.draft is None:
            return (len(self.voice.text.token_ids),)
        return tuple(self.draft.end(self.voice, position) for position in range(self.first, self.draft.positions))

    @property
    def positions(self) -> range:
        """The positions wanted."""
        return range(self.first, self.first + len(self.ends))

    def ask(self, masks: _Masks) -> Ask:
        """Returns the message to the member: everything it has not read, up to the last position."""
        request, text, ends = self.request, self.voice.text, self.ends
        ids = text.token_ids if self.draft is None else self.draft.token_ids(self.voice)
        start, penalty = text.chunk_start, request.params.repetition_penalty
        chunk_ids, num_logits = tuple(ids[start : ends[-1]]), ends[-1] - ends[0] + 1
        gated = request.threshold is not None and self.voice is request.gate
        return Ask(
            chunk=Chunk(
                self.voice.cache_id, start, chunk_ids, num_logits, text.images_from(start), self.voice.kept_from(start)
            ),
            ends=ends,
            alignment=self.voice.member.alignment,
            form="full" if request.needs_full else "top",
            repetition_penalty=penalty,
            temperature=self.voice.member.temperature,
            text_before=() if penalty == 1 else tuple(ids[:start]),
            mask=masks.of(self),
            offsets=self._offsets(),
            gate_rule=request.gate_rule if gated else None,
            share=request.share(self.voice) if gated else 1.0,
            fetch_from=len(text.token_ids),
            timeout=request.failures.forward_timeout,
        )

    def _offsets(self) -> tuple[LogitOffsets, ...]:
        adjustment = self.request.adjustment
        if adjustment is None:
            return ()
        drafted = () if self.draft is None else self.draft.tokens
        return tuple(adjustment.offsets(drafted[:position]) for position in self.positions)


@dataclass(frozen=True, eq=False)
class PartQuery:
    """Which part of one voice's text is read, and the likelihood of which tokens is wanted.

    Attributes:
        request: The request.
        voice: The voice.
        part: The part.
    """

    request: Request
    voice: Sequence
    part: Part

    def ask(self) -> Ask:
        """Returns the message to the member."""
        return Ask(
            chunk=chunk_of(self.voice, self.part),
            ends=(self.part.end,),
            alignment=self.voice.member.alignment,
            timeout=self.request.failures.forward_timeout,
            targets=self.part.targets,
        )


class _Masks:
    """Grammar masks for one call of an executor, which may take them from several threads until it returns.

    A member that hangs and returns later gets none: the grammar's state has moved on by then.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._open = True

    def of(self, query: Query) -> Callable[[], Tensor] | None:
        """Returns what computes the masks at a query's positions; None without a grammar."""
        constraint = query.request.constraint
        if constraint is None:
            return None
        tokens = () if query.draft is None else tuple(query.draft.tokens)
        positions = query.positions

        def masks() -> Tensor:
            with self._lock:
                if not self._open:
                    raise RuntimeError("the step that this mask belongs to is over")
                return torch.stack([constraint.mask(tokens[:position]) for position in positions])

        return masks

    def close(self) -> None:
        """Ends the call; waits for a mask that is being computed."""
        with self._lock:
            self._open = False


@dataclass(frozen=True, eq=False)
class Missing:
    """Probabilities of one voice that its answer left out.

    Attributes:
        request: The request.
        voice: The voice.
        end: Length of its text at the position.
        ids: Union ids; None: the whole distribution.
    """

    request: Request
    voice: Sequence
    end: int
    ids: tuple[int, ...] | None = None

    def fetch(self) -> Fetch:
        """Returns the message to the member."""
        ids = None if self.ids is None else torch.tensor(self.ids, dtype=torch.long)
        return Fetch(self.voice.cache_id, self.end, ids)


class DistributionCollector:
    """Evaluates queries, with one call for each member.

    Args:
        executor: Runs the members.

    Attributes:
        forward_seconds: Wall time of the short forwards so far.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor
        self.forward_seconds = 0.0

    def notice_recoveries(self, batch: Iterable[Request]) -> None:
        """Lets members that work again take part, and those that lost their KV cache since the last step read again."""
        for request in batch:
            if request.absent:
                rejoin(request, self._executor.alive)
            for voice in request.voices:
                voice.reread(self._executor.generation(voice.member.member_id))

    def collect(self, queries: Rows[Query], prefill_seconds: float | None) -> list[tuple[int, Sequence, VoiceResult]]:
        """Returns for each query its row, its voice and what came of it.

        A failure of one query does not affect the others.

        Args:
            queries: What is wanted; each voice at most once.
            prefill_seconds: Seconds that each member may spend on long prompts; None: no limit.
        """
        if not queries:
            return []
        masks = _Masks()
        asks: dict[str, dict[Query, Ask]] = {}
        for query in queries:
            asks.setdefault(query.voice.member.member_id, {})[query] = query.ask(masks)
        before = {query.voice.member: query.voice.member.times.total for query in queries}
        try:
            answers = self._executor.forward({key: list(own.values()) for key, own in asks.items()}, prefill_seconds)
        finally:
            masks.close()
        self.forward_seconds += together({member: member.times.total - total for member, total in before.items()})
        return [
            (query.row, query.voice, _recorded(query, ask, answer))
            for member_id, own in answers.items()
            for (query, ask), answer in zip(asks[member_id].items(), own, strict=True)
        ]

    def read_parts(
        self, parts: Rows[PartQuery], prefill_seconds: float | None = None
    ) -> list[tuple[PartQuery, TargetLogprobs | Unread | GaCError]]:
        """Returns for each part of a text the log-probabilities of its targets, or why there are none; in any order.

        Args:
            parts: What is read; each voice at most once.
            prefill_seconds: Seconds that each member may spend on parts without targets; None: no limit.
        """
        asks: dict[str, dict[PartQuery, Ask]] = {}
        for query in parts:
            asks.setdefault(query.voice.member.member_id, {})[query] = query.ask()
        sent = {key: list(own.values()) for key, own in asks.items()}
        answers = self._executor.forward(sent, prefill_seconds) if asks else {}
        return [
            (query, _part_result(query, ask, answer))
            for member_id, own in answers.items()
            for (query, ask), answer in zip(asks[member_id].items(), own, strict=True)
        ]

    def erase(self, voice: Sequence) -> None:
        """Frees what a voice's member holds of it, and erases that."""
        self._executor.release(voice.cache_id, clear=True, member_id=voice.member.member_id)

    def fetch(self, missing: Rows[Missing]) -> list[Tensor | GaCError]:
        """Returns probabilities that answers left out, float32, or the errors of their voices; one call per member."""
        by_member: dict[str, list[int]] = {}
        for index, each in enumerate(missing):
            by_member.setdefault(each.voice.member.member_id, []).append(index)
        wanted = {key: [missing[index].fetch() for index in own] for key, own in by_member.items()}
        results: dict[int, Tensor | GaCError] = {}
        for key, fetched in self._executor.fetch(wanted).items():
            for index, result in zip(by_member[key], fetched, strict=True):
                results[index] = voice_error(missing[index].voice, result) if isinstance(result, Failure) else result
        return [results[index] for index in range(len(missing))]


def _recorded(query: Query, ask: Ask, answer: Answer) -> VoiceResult:
    """Records what a member computed and returns the distributions, or why there are none."""
    voice, result = query.voice, answer.result
    _record(query.request, voice, ask, answer)
    assert not isinstance(result, TargetLogprobs), "distributions were asked for"
    if isinstance(result, Failure):
        return voice_error(voice, result)
    if result is None:
        # A draft may be cut off after the committed text was read.
        voice.recompute_last()
        return Unread()
    return VoiceDistributions(result, ask.ends, query.first, answer.certainty)


def _part_result(query: PartQuery, ask: Ask, answer: Answer) -> TargetLogprobs | Unread | GaCError:
    """Records what a member computed and returns the log-probabilities, or why there are none."""
    _record(query.request, query.voice, ask, answer)
    result = answer.result
    if isinstance(result, Failure):
        return voice_error(query.voice, result)
    if result is None:
        return Unread()
    assert isinstance(result, TargetLogprobs), "targets were asked for"
    if any(math.isnan(value) or value > 0 for own in result.values for value in own):
        return InvalidLogitsError(query.voice.name)
    return result


def _record(request: Request, voice: Sequence, ask: Ask, answer: Answer) -> None:
    """Records what a member computed for a voice."""
    stats = request.stats.members[voice.name]
    if answer.read and not voice.has_begun:
        voice.has_begun = True
        # Where a grammar forced tokens, or the gate was sure, a part of the answer may be found as well.
        stats.reused_tokens += min(answer.read - answer.computed, voice.prompt_tokens)
    if answer.kept_bytes is not None and not voice.has_kept:
        voice.has_kept = True
        stats.kept_bytes += answer.kept_bytes
    images = ask.chunk.images
    if images is not None and answer.read >= images.end:
        stats.images = images.count
    request.record_forward(voice, answer.computed, answer.seconds)
    text = voice.text
    text.num_cached = max(text.num_cached, min(len(text.token_ids), ask.chunk.start + answer.read))


def voice_error(voice: Sequence, failure: Failure) -> GaCError:
    """Returns the error of a voice, or of its request, for which there are no distributions."""
    if failure.of_member:
        return member_failure(voice.name, failure.error, failure.stage)
    return request_failure(failure.stage, failure.error)
