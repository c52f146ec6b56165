"""What was picked at one place of one request, and its log-probability as callers read it.

Knows distributions over the union; knows nothing of how they came about.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.decoding.request import Picked, Request
from gac_core.output import TokenLogprob
from gac_core.tokenization.vocabulary import UnionVocabulary


@dataclass(frozen=True)
class Choice:
    """What one stage of one request comes to.

    Attributes:
        combined: The distribution, shape ``[union]``.
        token: The picked token's union id.
        best: Its probability; not finite where a member's logits are not usable.
        members: The members that were asked.
        own: What each of them gives the token.
        agreement: Share of them whose own most probable token it is; None unless there are several.
        divergence: Their Jensen-Shannon divergence, in nats; None unless there are several.
    """

    combined: Tensor
    token: int
    best: float
    members: Sequence[int]
    own: Sequence[float]
    agreement: float | None
    divergence: float | None

    @classmethod
    def of(cls, combined: Tensor, members: Sequence[int], facts: Sequence[float]) -> Choice:
        """Reads what was computed of a stage.

        Args:
            combined: The distribution, shape ``[union]``.
            members: The members that were asked.
            facts: Token, probability, agreement, divergence and what each member gives the token; more may follow.
        """
        token, best, agreement, divergence, *own = facts
        several = len(members) > 1
        return cls(
            combined=combined,
            token=int(token),
            best=best,
            members=members,
            own=own[: len(members)],
            agreement=agreement if several else None,
            divergence=divergence if several else None,
        )


def sure_logprob(request: Request, data: bytes | None) -> TokenLogprob | None:
    """Returns the log-probability of a token without alternative, if the request asks for any."""
    if request.params.logprobs is None:
        return None
    return TokenLogprob(data or b"", 0.0, ((data or b"", 0.0),) if request.params.logprobs else ())


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


def picked_of(union: UnionVocabulary, request: Request, choice: Choice) -> Picked:
    """Returns a choice as it is committed; members that gave it half of its probability or more chose it themselves."""
    half = choice.best / 2
    chosen_by = frozenset(member for member, own in zip(choice.members, choice.own, strict=True) if own >= half)
    alone = request.threshold is not None and len(choice.members) == 1
    return Picked(
        data=union.data(choice.token),
        ensembled=not alone,
        logprob=logprob(union, request, choice.combined, choice.token),
        chosen_by=chosen_by,
        confidence=choice.best,
        agreement=choice.agreement,
        divergence=choice.divergence,
    )
