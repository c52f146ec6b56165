"""Asks members for their next-token distributions over the union, for the rows of a batch that need them.

Knows members only by index, through the executor; knows nothing of how answers are combined.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from gac_core.errors import GaCError, InvalidLogitsError, MemberError
from gac_core.executor import Executor
from gac_core.member import Chunk
from gac_core.request import Request
from gac_core.sampling import penalise_repetition
from gac_core.vocabulary import Alignment


@dataclass
class Answers:
    """What the members said in one step.

    Attributes:
        rows: Per row of the batch and member index its distribution over the union, float32, shape ``[union]``.
        errors: Per row the first error that one of its members met.
    """

    rows: list[dict[int, Tensor]]
    errors: dict[int, GaCError] = field(default_factory=dict)


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

    def ask(self, batch: Sequence[Request], wanted: Mapping[int, Sequence[int]], answers: Answers) -> None:
        """Asks the members ``wanted`` per row, in one forward each, and files what they say under ``answers``.

        A member reads whatever of the text it has not read yet in the same forward.
        """
        chunks = {
            (row, member): batch[row].sequences[member].pending_chunk(batch[row].request_id)
            for row, members in wanted.items()
            for member in members
        }
        for (row, member), logits in self._forward(batch, chunks, answers).items():
            batch[row].note_read(member)
            answers.rows[row][member] = logits[-1]

    def look_ahead(
        self, batch: Sequence[Request], paths: Mapping[tuple[int, int], tuple[int, ...]], answers: Answers
    ) -> dict[tuple[int, int], Tensor]:
        """Returns what members would say after each id of a path that is not committed.

        Args:
            batch: The requests.
            paths: Per (row, member) the member's ids after its text, at least one.
            answers: Where errors are filed.

        Returns:
            Per (row, member) distributions over the union, shape ``[len(path), union]``.
        """
        chunks = {
            (row, member): Chunk(
                batch[row].request_id, len(batch[row].sequences[member].ids), tuple(path), num_logits=len(path)
            )
            for (row, member), path in paths.items()
        }
        return self._forward(batch, chunks, answers)

    def _forward(
        self, batch: Sequence[Request], chunks: Mapping[tuple[int, int], Chunk], answers: Answers
    ) -> dict[tuple[int, int], Tensor]:
        by_member: dict[int, list[int]] = {}
        for row, member in sorted(chunks, key=lambda key: (key[1], key[0])):
            by_member.setdefault(member, []).append(row)
        if not by_member:
            return {}
        calls = {member: [chunks[row, member] for row in rows] for member, rows in by_member.items()}
        told: dict[tuple[int, int], Tensor] = {}
        for member, results in self._executor.forward(calls).items():
            good: list[tuple[int, Tensor]] = []
            for row, result in zip(by_member[member], results, strict=True):
                if isinstance(result.logits, Exception):
                    error = result.logits
                    answers.errors[row] = MemberError(self._names[member], f"{type(error).__name__}: {error}")
                    continue
                batch[row].note_forward(member, len(chunks[row, member].token_ids), result.seconds)
                good.append((row, self._penalised(batch[row], chunks[row, member], member, result.logits)))
            if good:
                self._align(member, good, told, answers)
        return told

    def _penalised(self, request: Request, chunk: Chunk, member: int, logits: Tensor) -> Tensor:
        penalty = request.params.repetition_penalty
        if penalty == 1:
            return logits
        seen = set(request.sequences[member].ids) | set(chunk.token_ids)
        ids = torch.tensor(sorted(seen), device=logits.device)
        return torch.stack([penalise_repetition(row, ids, penalty) for row in logits])

    def _align(
        self, member: int, good: list[tuple[int, Tensor]], told: dict[tuple[int, int], Tensor], answers: Answers
    ) -> None:
        aligned = self._alignments[member].align(torch.cat([logits for _, logits in good]))
        # One look at the sums finds NaN anywhere in a row.
        usable = torch.isfinite(aligned.sum(-1)).tolist()
        start = 0
        for row, logits in good:
            end = start + logits.shape[0]
            if all(usable[start:end]):
                told[row, member] = aligned[start:end]
            else:
                answers.errors[row] = InvalidLogitsError(self._names[member])
            start = end
