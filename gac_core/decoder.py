"""One step of a batch: which members are asked, how their answers are combined, and which token each request gets.

Knows members only by index, through the executor; does not commit tokens or end requests.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.aggregation import arithmetic_mean, gate_is_sure, normalise
from gac_core.errors import GaCError, InvalidLogitsError, MemberError
from gac_core.executor import Executor
from gac_core.output import TokenLogprob
from gac_core.request import Picked, Request
from gac_core.sampling import penalise_repetition
from gac_core.vocabulary import Alignment, UnionVocabulary


class StepDecoder:
    """Decodes one union token per request and step.

    Args:
        executor: Runs the members.
        union: The union vocabulary.
        alignments: One per member.
        weights: One per member, above 0.
        names: The members' names.
    """

    def __init__(
        self,
        executor: Executor,
        union: UnionVocabulary,
        alignments: Sequence[Alignment],
        weights: Sequence[float],
        names: Sequence[str],
    ) -> None:
        self._executor = executor
        self._union = union
        self._alignments = list(alignments)
        self._weights = normalise(weights)
        self._names = list(names)

    @torch.inference_mode()
    def decode(self, batch: Sequence[Request]) -> list[Picked | GaCError]:
        """Picks the next token of every request, or the error that one of its members met.

        Gates are asked first; a gate that is sure decides alone and the other members do nothing. All others are then
        asked in one forward each, and read whatever they skipped in the same chunk.
        """
        everyone = range(len(self._alignments))
        answers: list[dict[int, Tensor]] = [{} for _ in batch]
        errors: dict[int, GaCError] = {}
        gated = [row for row, request in enumerate(batch) if request.threshold is not None]
        self._ask(batch, {row: [batch[row].gate] for row in gated}, answers, errors)
        alone = {row for row in gated if row not in errors and self._sure(batch[row], answers[row])}
        rest = {
            row: [member for member in everyone if member not in answers[row]]
            for row in range(len(batch))
            if row not in alone and row not in errors
        }
        self._ask(batch, rest, answers, errors)
        picked: list[Picked | GaCError] = []
        for row, request in enumerate(batch):
            if row in errors:
                picked.append(errors[row])
                continue
            request.stats.steps += 1
            request.stats.steps_ensembled += row not in alone
            if row in alone:
                combined = answers[row][request.gate]
            else:
                combined = arithmetic_mean([answers[row][member][None] for member in everyone], self._weights)[0]
            picked.append(self._pick(request, combined))
        return picked

    def _sure(self, request: Request, answers: dict[int, Tensor]) -> bool:
        assert request.threshold is not None
        return gate_is_sure(answers[request.gate], request.threshold)

    def _ask(
        self,
        batch: Sequence[Request],
        wanted: dict[int, list[int]],
        answers: list[dict[int, Tensor]],
        errors: dict[int, GaCError],
    ) -> None:
        """Asks members for the distributions of rows and files them under ``answers`` or ``errors``."""
        by_member: dict[int, list[int]] = {}
        for row, members in wanted.items():
            for member in members:
                by_member.setdefault(member, []).append(row)
        if not by_member:
            return
        calls = {
            member: [batch[row].sequences[member].pending(batch[row].request_id) for row in rows]
            for member, rows in sorted(by_member.items())
        }
        for member, results in self._executor.forward(calls).items():
            good: list[tuple[int, Tensor]] = []
            for row, result in zip(by_member[member], results, strict=True):
                if isinstance(result.logits, Exception):
                    error = result.logits
                    errors[row] = MemberError(self._names[member], f"{type(error).__name__}: {error}")
                    continue
                logits = result.logits[-1]
                penalty = batch[row].params.repetition_penalty
                if penalty != 1:
                    seen = torch.tensor(sorted(set(batch[row].sequences[member].ids)), device=logits.device)
                    logits = penalise_repetition(logits, seen, penalty)
                batch[row].note_forward(member, result.seconds)
                good.append((row, logits))
            if not good:
                continue
            aligned = self._alignments[member].align(torch.stack([logits for _, logits in good]))
            # One look at the sums finds NaN anywhere in a row.
            usable = torch.isfinite(aligned.sum(-1)).tolist()
            for (row, _), distribution, fine in zip(good, aligned, usable, strict=True):
                if fine:
                    answers[row][member] = distribution
                else:
                    errors[row] = InvalidLogitsError(self._names[member])

    def _pick(self, request: Request, combined: Tensor) -> Picked:
        token = request.sampler.pick(combined)
        if request.params.logprobs is None:
            return Picked(token)
        best = torch.topk(combined, min(request.params.logprobs, combined.numel()))
        top = tuple(
            (self._bytes(int(index)), float(value))
            for value, index in zip(best.values.log(), best.indices, strict=True)
            if value > float("-inf")
        )
        return Picked(token, TokenLogprob(self._bytes(token), float(combined[token].log()), top))

    def _bytes(self, token: int) -> bytes:
        return b"" if token == self._union.end_id else self._union.tokens[token]
