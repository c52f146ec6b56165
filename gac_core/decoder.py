"""One step of a batch: which members are asked, and which token each request gets.

The paper's alignment: union tokens compete one against the other. Knows members only by index; does not commit tokens
or end requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from gac_core.aggregation import arithmetic_mean, gate_is_sure, normalise
from gac_core.errors import GaCError
from gac_core.output import TokenLogprob
from gac_core.poll import Answers, Poll
from gac_core.request import Picked, Request
from gac_core.vocabulary import UnionVocabulary


class Decoder(Protocol):
    """Picks the next token of every request of a batch."""

    def decode(self, batch: Sequence[Request]) -> list[Picked | GaCError]:
        """Returns per request its next token, or the error that one of its members met."""
        ...


class StepDecoder:
    """Decodes one union token per request and step (GaC, sections 3.2 to 3.4).

    Args:
        poll: Asks the members.
        union: The union vocabulary.
        weights: One per member, above 0.
    """

    def __init__(self, poll: Poll, union: UnionVocabulary, weights: Sequence[float]) -> None:
        self._poll = poll
        self._union = union
        self._weights = normalise(weights)

    @torch.inference_mode()
    def decode(self, batch: Sequence[Request]) -> list[Picked | GaCError]:
        """Picks the next token of every request, or the error that one of its members met.

        Gates are asked first; a gate that is sure decides alone and the other members do nothing. All others are then
        asked in one forward each, and read whatever they skipped in the same chunk.
        """
        everyone = range(len(self._weights))
        answers = Answers([{} for _ in batch])
        gated = [row for row, request in enumerate(batch) if request.threshold is not None]
        self._poll.ask(batch, {row: [batch[row].gate] for row in gated}, answers)
        alone = {row for row in gated if row not in answers.errors and self._sure(batch[row], answers.rows[row])}
        rest = {
            row: [member for member in everyone if member not in answers.rows[row]]
            for row in range(len(batch))
            if row not in alone and row not in answers.errors
        }
        self._poll.ask(batch, rest, answers)
        picked: list[Picked | GaCError] = []
        for row, request in enumerate(batch):
            if row in answers.errors:
                picked.append(answers.errors[row])
                continue
            request.stats.steps += 1
            request.stats.steps_ensembled += row not in alone
            told = answers.rows[row]
            if row in alone:
                combined = told[request.gate]
            else:
                combined = arithmetic_mean([told[member][None] for member in everyone], self._weights)[0]
            picked.append(self._pick(request, combined, told))
        return picked

    def _sure(self, request: Request, told: dict[int, Tensor]) -> bool:
        assert request.threshold is not None
        return gate_is_sure(told[request.gate], request.threshold)

    def _pick(self, request: Request, combined: Tensor, told: dict[int, Tensor]) -> Picked:
        token = request.sampler.pick(combined)
        half = float(combined[token]) / 2
        chosen_by = frozenset(member for member, own in told.items() if float(own[token]) >= half)
        return Picked(self._union.data(token), logprob(self._union, request, combined, token), chosen_by)


def logprob(union: UnionVocabulary, request: Request, combined: Tensor, token: int) -> TokenLogprob | None:
    """Returns a token's log-probability and the most probable ones, as far as the request asks for them.

    Args:
        union: The union vocabulary.
        request: The request.
        combined: Shape ``[union]``.
        token: Union id of the token.
    """
    if request.params.logprobs is None:
        return None
    best = torch.topk(combined, min(request.params.logprobs, combined.numel()))
    top = tuple(
        (union.data(int(index)) or b"", float(value))
        for value, index in zip(best.values.log(), best.indices, strict=True)
        if value > float("-inf")
    )
    return TokenLogprob(union.data(token) or b"", float(combined[token].log()), top)
