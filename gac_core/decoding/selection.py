"""From the voices' distributions to one token at each position: combine and select."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.combination import arithmetic_mean, selective_mean
from gac_core.decoding.agreement import agreement, jensen_shannon
from gac_core.decoding.member_tokens import measure_members, member_tokens
from gac_core.decoding.place import Place, TopPlace
from gac_core.decoding.request import Request
from gac_core.decoding.tokens import SampledToken
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
        own: The probability that each voice gives it, as a share of the same total.
        agreement: Share of the voices whose most probable token it is; None unless there are several.
        divergence: Their Jensen-Shannon divergence, in nats; None unless there are several, and complete.
        members: As in `TokenStats`; empty unless the request asks for it.
        rank: As in `TokenLogprob`, where log-probabilities are asked for.
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

    @property
    def usable(self) -> bool:
        """Whether the distribution is one: NaN, infinity and a total of 0 leave nothing to select.

        A given token (`Request.continuation`) may have the probability 0.
        """
        given = self.place.request.continuation is not None
        return 0 < self.confidence < float("inf") or (given and self.confidence == 0)

    def sampled(self) -> SampledToken:
        """Returns the token as it is committed.

        A voice that gives it half of its combined probability or more counts as having chosen it itself.
        """
        request, voices = self.place.request, self.place.voices
        chosen = frozenset(voice for voice, own in zip(voices, self.own, strict=True) if own >= self.confidence / 2)
        return SampledToken(
            data=request.union.data(self.token),
            ensembled=request.threshold is None or len(voices) > 1,
            logprob=token_logprob(request, self),
            chosen_by=chosen,
            confidence=self.confidence,
            agreement=self.agreement,
            divergence=self.divergence,
            members=self.members,
        )


def select(places: Rows[Place]) -> list[Selection]:
    """Combines the distributions at each place and selects a token, greedily or by the request's random numbers.

    One device synchronisation for all places.
    """
    if not places:
        return []
    combined = [combine(place) for place in places]
    tokens = [select_token(place, probs) for place, (probs, _) in zip(places, combined, strict=True)]
    measures = [
        _measure(place, probs, total, token)
        for place, (probs, total), token in zip(places, combined, tokens, strict=True)
    ]
    width = max(measure.shape[0] for measure in measures)
    device = measures[0].device
    padded = torch.stack([torch.nn.functional.pad(m.to(device), (0, width - m.shape[0])) for m in measures])
    ids, values = to_host(torch.cat([token.to(device) for token in tokens]), padded)
    return [
        _selection(place, probs, token, numbers)
        for place, (probs, _), token, numbers in zip(places, combined, ids.tolist(), values.tolist(), strict=True)
    ]


def combine(place: Place) -> tuple[Tensor, Tensor | None]:
    """Returns the combined distribution, and the total that it was divided by where mass was removed."""
    mixed = _mixed(place) if len(place.voices) > 1 else place.probs[0]
    if not place.request.removes_mass:
        return mixed, None
    total = mixed.sum()
    return mixed / total, total


def _mixed(place: Place) -> Tensor:
    if place.verification is not None:
        return selective_mean(place.probs, place.shares, place.verification)
    return place.request.combiner(place.probs, place.shares)


def select_token(place: Place, combined: Tensor) -> Tensor:
    """Returns the selected token's union id, int64, shape ``[1]``."""
    request = place.request
    return request.sampler.pick(combined, request.union.keys(combined.device), place.position)


def _measure(place: Place, combined: Tensor, total: Tensor | None, token: Tensor) -> Tensor:
    """Returns confidence, agreement, divergence, rank and each voice's probability, float64, shape ``[4 + voices]``.

    Where the request asks for statistics of tokens, followed by those of `measure_members`.
    """
    device = combined.device
    own = [probs.index_select(0, token.to(probs.device)).to(device) for probs in place.probs]
    confidence = combined.index_select(0, token)
    compared = [torch.zeros_like(confidence)] * 2
    if len(own) > 1:
        shares = place.shares
        mean = combined
        if place.request.combiner is not arithmetic_mean:
            mean = arithmetic_mean(place.probs, shares)
            mean = mean if total is None else mean / mean.sum()
        compared = [agreement(place.probs, own), jensen_shannon(place.probs, shares, mean)]
    if total is not None:
        own = [each / total for each in own]
    members = [measure_members(place.probs, token)] if place.request.params.token_stats else []
    ranked = place.request.params.logprobs is not None
    rank = (combined > confidence).sum(0, keepdim=True) + 1 if ranked else torch.ones_like(confidence)
    return torch.cat([part.double() for part in (confidence, *compared, rank, *own, *members)])


def _selection(place: Place, combined: Tensor, token: int, numbers: Rows[float]) -> Selection:
    confidence, agreed, divergence, rank, *others = numbers
    count, request = len(place.voices), place.request
    several = count > 1
    members: tuple[MemberToken, ...] = ()
    if request.params.token_stats:
        members = member_tokens([voice.name for voice in place.voices], others[count : 5 * count], request.union)
    return Selection(
        place=place,
        combined=combined,
        token=token,
        confidence=confidence,
        own=tuple(others[:count]),
        agreement=agreed if several else None,
        divergence=divergence if several else None,
        members=members,
        rank=int(rank),
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
