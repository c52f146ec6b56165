"""Asks members for their next-token distributions over the union, for the rows of a batch that need them.

Knows members only by index, through the executor; knows nothing of how answers are combined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gac_core.decoding.path import Path
from gac_core.decoding.request import Request
from gac_core.decoding.sampler import penalise_repetition
from gac_core.errors import GaCError
from gac_core.executor.local import Executor
from gac_core.failures import member_failure, request_failure
from gac_core.model.cache import to_device
from gac_core.model.chunk import Chunk, ChunkResult
from gac_core.tokenization.vocabulary import Alignment

Key = tuple[int, int]


@dataclass
class Answers:
    """What the members said in one step.

    Attributes:
        rows: Per row of the batch and member index its distributions over the union, float32, shape
            ``[stages, union]``, without the mass of what a grammar does not allow. They may hold NaN.
        since: Per row and member the stage of the first of them; 0 where it is not here.
        unread: Rows of which a member has not read all of its text yet; they go on in the next step.
        errors: Per row the first error that one of its members met.
        crowded: Whether other requests run, which wait while a member reads.
    """

    rows: list[dict[int, Tensor]]
    since: dict[Key, int] = field(default_factory=dict)
    unread: set[int] = field(default_factory=set)
    errors: dict[int, GaCError] = field(default_factory=dict)
    crowded: bool = False

    @classmethod
    def of(cls, batch: Sequence[Request], crowded: bool = False) -> Answers:
        """Starts with what members have told already."""
        return cls([dict(request.told) for request in batch], crowded=crowded)

    def open(self, row: int) -> bool:
        """Whether a row can be decided in this step, as far as is known."""
        return row not in self.errors and row not in self.unread

    def stage(self, row: int, member: int, stage: int) -> Tensor:
        """Returns a member's distribution at a stage, shape ``[union]``."""
        return self.rows[row][member][stage - self.since.get((row, member), 0)]


class Poll:
    """Asks members.

    Args:
        executor: Runs the members.
        alignments: One per member.
        names: The members' names.
    """

    def __init__(self, executor: Executor, alignments: Sequence[Alignment], names: Sequence[str]) -> None:
        self._executor = executor
        self._alignments = list(alignments)
        self._names = list(names)

    def ask(
        self,
        batch: Sequence[Request],
        wanted: Mapping[int, Sequence[int]],
        answers: Answers,
        paths: Mapping[int, Path] | None = None,
        since: Mapping[int, int] | None = None,
    ) -> None:
        """Asks the members ``wanted`` per row, in one forward each, and files what they say under ``answers``.

        A member reads whatever of the text it has not read yet in the same forward; a text that is too long for one is
        read in part, and its row filed as unread.

        Args:
            batch: The requests.
            wanted: Per row the members to ask. One that was asked at earlier stages is asked for those that follow.
            answers: Where answers are filed.
            paths: Drafted texts by row; without one a member is asked at stage 0 alone.
            since: Per row the first stage that matters; default 0.
        """
        chunks: dict[Key, Chunk] = {}
        ends: dict[Key, list[int]] = {}
        for row, members in wanted.items():
            path = (paths or {}).get(row)
            for member in members:
                key = row, member
                ends[key] = self._ends(batch[row], member, path, answers, key, (since or {}).get(row, 0))
                ids = batch[row].texts[member].ids if path is None else path.ids(member)
                start = batch[row].texts[member].num_cached
                wide = ends[key][-1] - ends[key][0] + 1
                chunks[key] = Chunk(batch[row].request_id, start, tuple(ids[start : ends[key][-1]]), wide)
        for (row, member), said in self._forward(batch, chunks, ends, answers).items():
            told = answers.rows[row].get(member)
            first = answers.since.get((row, member), 0) + (0 if told is None else told.shape[0])
            try:
                self._mask(batch[row], (paths or {}).get(row), first, said)
            except BaseException as error:
                answers.errors.setdefault(row, request_failure("masking what the grammar does not allow", error))
            answers.rows[row][member] = said if told is None else torch.cat([told, said])

    @staticmethod
    def _mask(request: Request, path: Path | None, first: int, said: Tensor) -> None:
        """Takes the mass of what a grammar does not allow, at the stages from the first on."""
        if request.constraint is None:
            return
        tokens = () if path is None else path.tokens
        masks = [request.constraint.mask(tokens[:stage]) for stage in range(first, first + said.shape[0])]
        said.mul_(torch.stack(masks).to(said.device, non_blocking=True))

    @staticmethod
    def _ends(request: Request, member: int, path: Path | None, answers: Answers, key: Key, since: int) -> list[int]:
        """Lengths of a member's text at the stages it is asked for."""
        if path is None:
            return [len(request.texts[member].ids)]
        told = answers.rows[key[0]].get(member)
        if told is None:
            answers.since[key] = since
        else:
            since = answers.since.get(key, 0) + told.shape[0]
        return [path.end(member, stage) for stage in range(since, path.stages)]

    def _forward(
        self,
        batch: Sequence[Request],
        chunks: Mapping[Key, Chunk],
        ends: Mapping[Key, Sequence[int]],
        answers: Answers,
    ) -> dict[Key, Tensor]:
        by_member: dict[int, list[int]] = {}
        for row, member in sorted(chunks, key=lambda key: (key[1], key[0])):
            by_member.setdefault(member, []).append(row)
        if not by_member:
            return {}
        calls = {member: [chunks[row, member] for row in rows] for member, rows in by_member.items()}
        told: dict[Key, Tensor] = {}
        for member, results in self._executor.forward(calls, answers.crowded).items():
            good: list[tuple[int, Tensor]] = []
            for row, result in zip(by_member[member], results, strict=True):
                key = row, member
                if self._note(batch[row], member, chunks[key], result, row, answers):
                    assert isinstance(result.logits, Tensor)
                    try:
                        good.append((row, self._wanted(batch[row], member, chunks[key], ends[key], result.logits)))
                    except BaseException as error:
                        answers.errors[row] = member_failure(self._names[member], error, "processing its logits")
            for row, part in self._aligned(member, good, answers).items():
                told[row, member] = part
        return told

    def _aligned(self, member: int, good: Sequence[tuple[int, Tensor]], answers: Answers) -> dict[int, Tensor]:
        """The distributions over the union of each row's logits; of a batch that fails, row by row."""
        if not good:
            return {}
        try:
            aligned = self._alignments[member].align(torch.cat([logits for _, logits in good]))
            parts = torch.split(aligned, [logits.shape[0] for _, logits in good])
            return {row: part for (row, _), part in zip(good, parts, strict=True)}
        except BaseException as error:
            if len(good) > 1:
                return {row: part for each in good for row, part in self._aligned(member, [each], answers).items()}
            failed = member_failure(self._names[member], error, "aligning its logits")
            answers.errors.setdefault(good[0][0], failed)
            return {}

    def _note(
        self, request: Request, member: int, chunk: Chunk, result: ChunkResult, row: int, answers: Answers
    ) -> bool:
        """Files what a chunk came to; True if it has logits."""
        if isinstance(result.logits, BaseException):
            answers.errors.setdefault(row, member_failure(self._names[member], result.logits))
            return False
        if chunk.start == 0 and result.read:
            request.stats.members[self._names[member]].reused_tokens = result.read - result.computed
        request.note_forward(member, result.computed, result.seconds)
        text = request.texts[member]
        text.num_cached = max(text.num_cached, min(len(text.ids), chunk.start + result.read))
        if result.logits is None:
            # Read to its end but cut off behind it, in a draft: the last id goes with the next chunk, for its logits.
            text.num_cached = min(text.num_cached, len(text.ids) - 1)
            answers.unread.add(row)
            return False
        return True

    def _wanted(self, request: Request, member: int, chunk: Chunk, ends: Sequence[int], logits: Tensor) -> Tensor:
        """The logits at the stages that were asked for, with the repetition penalty."""
        if len(ends) < logits.shape[0]:
            places = to_device([end - ends[-1] + logits.shape[0] - 1 for end in ends], logits.device)
            logits = logits.index_select(0, places)
        penalty = request.params.repetition_penalty
        if penalty == 1:
            return logits
        text = [*request.texts[member].ids[: chunk.start], *chunk.token_ids]
        seen = [to_device(sorted(set(text[:end])), logits.device) for end in ends]
        return torch.stack([penalise_repetition(row, ids, penalty) for row, ids in zip(logits, seen, strict=True)])
