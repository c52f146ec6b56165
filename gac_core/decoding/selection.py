"""From the voices' distributions to one token at each position: combine and select."""

from __future__ import annotations

import math
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.combination import arithmetic_mean
from gac_core.combination.documents import document_mean
from gac_core.decoding.agreement import agreement, jensen_shannon
from gac_core.decoding.combined import Combined, combine
from gac_core.decoding.member_tokens import measure_members, member_tokens
from gac_core.decoding.place import Place, TopPlace
from gac_core.decoding.request import Request
from gac_core.decoding.tokens import SampledToken
from gac_core.decoding.votes import TokenVotes, measure_votes, token_votes
from gac_core.model.transfer import to_host
from gac_core.token_stats import MemberToken, TokenLogprob


@dataclass(frozen=True, eq=False)
class Selection:
    """A token selected at one place.

    Attributes:
        place: The place.
        combined: The combined distribution, float32, shape ``[union]``, normalised; None where it is not complete.
        token: Union id of the token.
        confidence: Its probability; not finite, or 0, where the distributions are not usable.
        own: The probability that each of the place's readers gives it, as a share of the same total.
        agreement: Share of the voices, or in a request with documents of the documents, whose most probable token it
            is; None unless there are several.
        divergence: Their Jensen-Shannon divergence, in nats; None unless there are several, and complete.
        members: As in `TokenStats`; empty unless the request asks for it.
        rank: As in `TokenLogprob`, where log-probabilities are asked for.
        votes: What is reported of it in a request with documents; else None.
    """

    place: Place | TopPlace
    combined: Tensor | None
    token: int
    confidence: float
    own: tuple[float, ...]
    agreement: float | None
    divergence: float | None
    members: tuple[MemberToken, ...] = ()
    rank: int = 1
    votes: TokenVotes | None = None

    @property
    def usable(self) -> bool:
        """Whether the distribution is one: NaN, infinity and a total of 0 leave nothing to select.

        A given token (`Request.continuation`) may have the probability 0.
        """
        prior = None if self.votes is None else self.votes.prior
        if prior is not None and not math.isfinite(prior):
            return False
        given = self.place.request.continuation is not None
        return 0 < self.confidence < float("inf") or (given and self.confidence == 0)

    def sampled(self) -> SampledToken:
        """Returns the token as it is committed.

        A voice that gives it half of its combined probability or more counts as having chosen it itself.
        """
        request, place = self.place.request, self.place
        pairs = zip(place.readers, self.own, strict=True)
        chosen = frozenset(voice for voice, own in pairs if own >= self.confidence / 2)
        return SampledToken(
            data=request.union.data(self.token),
            ensembled=request.threshold is None or not place.single,
            logprob=token_logprob(request, self),
            chosen_by=chosen,
            confidence=self.confidence,
            agreement=self.agreement,
            divergence=self.divergence,
            members=self.members,
            votes=self.votes,
        )


def select(places: Rows[Place]) -> list[Selection]:
    """Combines the distributions at each place and selects a token, greedily or by the request's random numbers.

    One device synchronisation for all places.
    """
    if not places:
        return []
    combined = [combine(place) for place in places]
    tokens = [select_token(place, each.probs) for place, each in zip(places, combined, strict=True)]
    measures = [_measure(*each) for each in zip(places, combined, tokens, strict=True)]
    width = max(measure.shape[0] for measure in measures)
    device = measures[0].device
    padded = torch.stack([torch.nn.functional.pad(m.to(device), (0, width - m.shape[0])) for m in measures])
    ids, values = to_host(torch.cat([token.to(device) for token in tokens]), padded)
    return [
        _selection(place, each.probs, token, numbers)
        for place, each, token, numbers in zip(places, combined, ids.tolist(), values.tolist(), strict=True)
    ]


def select_token(place: Place, combined: Tensor) -> Tensor:
    """Returns the selected token's union id, int64, shape ``[1]``."""
    request = place.request
    return request.sampler.pick(combined, request.union.keys(combined.device), place.position)


def _measure(place: Place, combined: Combined, token: Tensor) -> Tensor:
    """Returns confidence, agreement, divergence, rank and each reader's probability, float64, shape ``[4 + readers]``.

    Followed by the numbers of `measure_members`, where the request asks for statistics of tokens, and by those of
    `measure_votes`, where it has documents.
    """
    probs, request = combined.probs, place.request
    device = probs.device
    own = _chosen(place.probs, token)
    confidence = probs.index_select(0, token)
    ranked = request.params.logprobs is not None
    rank = (probs > confidence).sum(0, keepdim=True) + 1 if ranked else torch.ones_like(confidence)
    parts = [confidence, *_compare(place, combined, token), rank]
    parts += own if combined.total is None else [each / combined.total for each in own]
    if request.params.token_stats:
        parts.append(measure_members(place.probs[: len(place.voices)], token))
    if request.has_documents:
        parts.append(measure_votes(place, combined, own, token))
    return torch.cat([part.to(device).double() for part in parts])


def _compare(place: Place, combined: Combined, token: Tensor) -> list[Tensor]:
    """Returns agreement and divergence, each of shape ``[1]``: of documents, or of voices where there are none."""
    request = place.request
    if request.has_documents:
        compared, shares = combined.documents, [group.weight for group in place.groups]
        is_mean = request.document_rule is document_mean
    else:
        compared, shares = place.probs, place.shares
        is_mean = request.combiner is arithmetic_mean
    if len(compared) == 1:
        return [torch.zeros(1, device=combined.probs.device)] * 2
    mean = combined.probs
    if not is_mean:
        mean = arithmetic_mean(compared, shares)
        mean = mean if combined.total is None else mean / mean.sum()
    return [agreement(compared, _chosen(compared, token)), jensen_shannon(compared, shares, mean)]


def _chosen(distributions: Rows[Tensor], token: Tensor) -> list[Tensor]:
    """Returns a token's probability in each distribution, shape ``[1]``, on the token's device."""
    return [probs.index_select(0, token.to(probs.device)).to(token.device) for probs in distributions]


def _selection(place: Place, combined: Tensor, token: int, numbers: Rows[float]) -> Selection:
    confidence, agreed, divergence, rank, *others = numbers
    request, voices = place.request, place.voices
    own, others = others[: len(place.readers)], others[len(place.readers) :]
    several = len(place.groups if request.has_documents else voices) > 1
    members: tuple[MemberToken, ...] = ()
    if request.params.token_stats:
        members, others = member_tokens(voices, others[: 4 * len(voices)], request.union), others[4 * len(voices) :]
    return Selection(
        place=place,
        combined=combined,
        token=token,
        confidence=confidence,
        own=tuple(own),
        agreement=agreed if several else None,
        divergence=divergence if several else None,
        members=members,
        rank=int(rank),
        votes=token_votes(place, others) if request.has_documents else None,
    )


def forced_token(request: Request, data: bytes | None) -> SampledToken:
    """Returns a token that a grammar forces: probability 1, without alternatives."""
    logprob = None
    if request.params.logprobs is not None:
        logprob = TokenLogprob(data or b"", 0.0, ((data or b"", 0.0),) if request.params.logprobs else ())
    return SampledToken(data, ensembled=False, logprob=logprob, forced=True)


def token_logprob(request: Request, selection: Selection) -> TokenLogprob | None:
    """Returns a token's log-probability and the most probable tokens, as far as the request asks for them."""
    if request.params.logprobs is None:
        return None
    union = request.union
    top: tuple[tuple[bytes, float], ...] = ()
    if request.params.logprobs:
        assert selection.combined is not None, "complete distributions were asked for"
        best = torch.topk(selection.combined, min(request.params.logprobs, selection.combined.numel()))
        top = tuple(
            (union.data(int(index)) or b"", float(value))
            for value, index in zip(best.values.log(), best.indices, strict=True)
            if value > float("-inf")
        )
    logprob = torch.tensor(selection.confidence, dtype=torch.float32).log()
    return TokenLogprob(union.data(selection.token) or b"", float(logprob), top, selection.rank)
