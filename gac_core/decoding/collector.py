"""Runs the members for a batch of queries and maps their logits onto the union: forward, align, constrain."""

from __future__ import annotations

from collections.abc import Iterable
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.decoding.distributions import Unread, VoiceDistributions, VoiceResult
from gac_core.decoding.draft_sequence import DraftSequence
from gac_core.decoding.request import Request
from gac_core.decoding.sampler import penalise_repetition
from gac_core.decoding.sequence import Sequence
from gac_core.errors import GaCError
from gac_core.executor.base import Executor
from gac_core.failures import member_failure, request_failure
from gac_core.model.cache import to_device
from gac_core.model.chunk import Chunk, ChunkResult
from gac_core.tokenization.vocabulary import Alignment


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
    def ends(self) -> list[int]:
        """Lengths of the voice's text at the positions wanted."""
        if self.draft is None:
            return [len(self.voice.text.token_ids)]
        return [self.draft.end(self.voice, position) for position in range(self.first, self.draft.positions)]

    def chunk(self) -> Chunk:
        """Returns the message to the member: everything it has not read, up to the last position."""
        ids = self.voice.text.token_ids if self.draft is None else self.draft.token_ids(self.voice)
        ends, start = self.ends, self.voice.text.num_cached
        return Chunk(self.request.request_id, start, tuple(ids[start : ends[-1]]), ends[-1] - ends[0] + 1)


@dataclass(frozen=True, eq=False)
class _Logits:
    """The logits that a query asked for, shape ``[positions, rows of the head]``."""

    query: Query
    values: Tensor


class DistributionCollector:
    """Evaluates queries: one forward per member, batched alignment, grammar masks.

    Args:
        executor: Runs the members.
    """

    def __init__(self, executor: Executor) -> None:
        self._executor = executor

    def collect(self, queries: Rows[Query], prefill_seconds: float | None) -> list[tuple[int, Sequence, VoiceResult]]:
        """Returns for each query its row, its voice and what came of it.

        A failure of one query does not affect the others.

        Args:
            queries: What is wanted; each voice at most once.
            prefill_seconds: Seconds that each member may spend on long prompts; None: no limit.
        """
        if not queries:
            return []
        chunks = {query: query.chunk() for query in queries}
        by_member: dict[str, list[Query]] = {}
        for query in queries:
            by_member.setdefault(query.voice.member.member_id, []).append(query)
        calls = {member_id: [chunks[query] for query in group] for member_id, group in by_member.items()}
        results: list[tuple[int, Sequence, VoiceResult]] = []
        for member_id, answers in self._executor.forward(calls, prefill_seconds).items():
            good: list[_Logits] = []
            for query, answer in zip(by_member[member_id], answers, strict=True):
                read = self._read(query, chunks[query], answer)
                if isinstance(read, _Logits):
                    good.append(read)
                else:
                    results.append((query.row, query.voice, read))
            results += [(each.row, each.voice, result) for each, result in self._distributions(good)]
        return results

    def _read(self, query: Query, chunk: Chunk, result: ChunkResult) -> _Logits | Unread | GaCError:
        """Records what a member computed and returns the logits wanted, or why there are none."""
        if isinstance(result.logits, BaseException):
            return member_failure(query.voice.name, result.logits)
        request, voice = query.request, query.voice
        if chunk.start == 0 and result.read:
            request.stats.members[voice.name].reused_tokens = result.read - result.computed
        request.record_forward(voice, result.computed, result.seconds)
        text = voice.text
        text.num_cached = max(text.num_cached, min(len(text.token_ids), chunk.start + result.read))
        if result.logits is None:
            # A draft may be cut off after the committed text was read.
            voice.recompute_last()
            return Unread()
        try:
            return _Logits(query, wanted_logits(query, chunk, result.logits))
        except BaseException as error:
            return member_failure(voice.name, error, "processing its logits")

    def _distributions(self, good: Rows[_Logits]) -> Iterable[tuple[Query, VoiceResult]]:
        """Aligns logits, in one batch for each alignment, and applies the masks of grammars."""
        groups: dict[Alignment, list[_Logits]] = {}
        for each in good:
            groups.setdefault(each.query.voice.member.alignment, []).append(each)
        for alignment, group in groups.items():
            for query, aligned in align(alignment, group):
                yield query, aligned if isinstance(aligned, GaCError) else constrain(query, aligned)


def wanted_logits(query: Query, chunk: Chunk, logits: Tensor) -> Tensor:
    """Returns the logits at the positions of a query, with the repetition penalty.

    Args:
        query: The query.
        chunk: Its chunk.
        logits: Those of the chunk's last positions, shape ``[num_logits, rows of the head]``.
    """
    ends = query.ends
    if len(ends) < logits.shape[0]:
        places = to_device([end - ends[-1] + logits.shape[0] - 1 for end in ends], logits.device)
        logits = logits.index_select(0, places)
    penalty = query.request.params.repetition_penalty
    if penalty == 1:
        return logits
    text = [*query.voice.text.token_ids[: chunk.start], *chunk.token_ids]
    seen = [to_device(sorted(set(text[:end])), logits.device) for end in ends]
    return torch.stack([penalise_repetition(row, ids, penalty) for row, ids in zip(logits, seen, strict=True)])


def align(alignment: Alignment, group: Rows[_Logits]) -> list[tuple[Query, Tensor | GaCError]]:
    """Returns each query's distributions over the union; if the batch raises, each is aligned by itself."""
    try:
        aligned = alignment.align(torch.cat([each.values for each in group]))
        parts = torch.split(aligned, [each.values.shape[0] for each in group])
        return [(each.query, part) for each, part in zip(group, parts, strict=True)]
    except BaseException as error:
        if len(group) > 1:
            return [result for each in group for result in align(alignment, [each])]
        query = group[0].query
        return [(query, member_failure(query.voice.name, error, "aligning its logits"))]


def constrain(query: Query, probs: Tensor) -> VoiceResult:
    """Removes the mass of tokens that the request's grammar does not allow.

    Args:
        query: The query.
        probs: Its distributions, float32, shape ``[positions, union]``; changed in place.
    """
    constraint = query.request.constraint
    if constraint is None:
        return VoiceDistributions(probs, query.first)
    try:
        tokens = () if query.draft is None else query.draft.tokens
        positions = range(query.first, query.first + probs.shape[0])
        masks = [constraint.mask(tokens[:position]) for position in positions]
        probs.mul_(torch.stack(masks).to(probs.device, non_blocking=True))
        return VoiceDistributions(probs, query.first)
    except BaseException as error:
        return request_failure("masking what the grammar does not allow", error)
