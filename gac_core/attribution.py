"""Which documents carried an answer: `Citation` for its spans, shares of documents, and doubt.

Pure functions on the statistics of tokens. A document's *posterior share* of some tokens is its weight times the
product of the probabilities that it alone gives them, as a share of the sum over all documents: how likely it is that
the text was written from this document, if it was written from one of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from gac_core.doubt import AbsenceCalibration, Doubt
from gac_core.sentences import sentences
from gac_core.shares import normalise
from gac_core.token_stats import TokenStats, Vote

# Smaller probabilities count as this one, so that a probability of 0 has a logarithm.
_LEAST = 1e-30


@dataclass(frozen=True)
class Citation:
    """A span of an answer, and the document that carried it.

    Attributes:
        start: Its first character in `RequestOutput.text`.
        end: The character after its last one.
        text: Its text.
        document: Id of the document with the largest posterior share.
        share: This share, 0 to 1.
        shares: The posterior share of each document, by its id; they sum to 1.
        members: By name of each member, its share of the votes for the span's tokens; they sum to 1.
        doubt: How sure the span is.
    """

    start: int
    end: int
    text: str
    document: str
    share: float
    shares: Mapping[str, float]
    members: Mapping[str, float]
    doubt: Doubt


@dataclass(frozen=True)
class VoiceWeight:
    """The weight of one voice that reads a document.

    Attributes:
        document: Id of the document.
        member: Name of the member.
        weight: Its weight, above 0, relative to the other voices.
    """

    document: str
    member: str
    weight: float


@dataclass(frozen=True)
class TextToken:
    """A token with its place in the text.

    Attributes:
        place: The characters that it writes, in whole or in part; empty for one that the text does not contain.
        stats: Its statistics.
    """

    place: range
    stats: TokenStats


@dataclass(frozen=True)
class Attribution:
    """What is known about the origin of an answer.

    Attributes:
        citations: One for each of its spans, in order; none without documents.
        document_shares: The posterior share of each document over the whole answer; empty without documents.
        doubt: How sure the answer is; None where nothing was combined and there are no documents.
    """

    citations: tuple[Citation, ...] = ()
    document_shares: Mapping[str, float] = field(default_factory=dict)
    doubt: Doubt | None = None


def attribute(
    text: str,
    tokens: Sequence[TextToken],
    voices: Sequence[VoiceWeight] = (),
    absence: AbsenceCalibration | None = None,
) -> Attribution:
    """Returns the origin of an answer.

    Its spans are the answer as a whole if it is one sentence, else its sentences. A token belongs to the span that
    holds its first character that is no white space.

    Args:
        text: The answer's text.
        tokens: Its tokens in order, those that the text does not contain included.
        voices: The voices that read a document. Default: none.
        absence: Predicts whether the documents contain the answer. Default: none.
    """
    written = [token.stats for token in tokens if token.place] or [token.stats for token in tokens]
    shares = document_shares(written, voices)
    doubt = measure_doubt(written, voices, shares, absence)
    if not shares:
        return Attribution(doubt=doubt)
    found = [_citation(text, span, stats, voices, absence) for span, stats in _spans(text, tokens)]
    return Attribution(tuple(citation for citation in found if citation is not None), shares, doubt)


def _citation(
    text: str,
    span: range,
    tokens: Sequence[TokenStats],
    voices: Sequence[VoiceWeight],
    absence: AbsenceCalibration | None,
) -> Citation | None:
    """Returns the citation of a span; None where a grammar forced all its tokens."""
    shares = document_shares(tokens, voices)
    doubt = measure_doubt(tokens, voices, shares, absence)
    if not shares or doubt is None:
        return None
    document = max(shares, key=lambda name: shares[name])
    written = text[span.start : span.stop]
    members = member_shares(tokens)
    return Citation(span.start, span.stop, written, document, shares[document], shares, members, doubt)


def _spans(text: str, tokens: Iterable[TextToken]) -> list[tuple[range, list[TokenStats]]]:
    """Returns the spans of a text with the tokens of each."""
    found: list[tuple[range, list[TokenStats]]] = [(span, []) for span in sentences(text)]
    index = 0
    for token in tokens:
        written = text[token.place.start : token.place.stop]
        if written.strip():
            first = token.place.start + len(written) - len(written.lstrip())
            while first >= found[index][0].stop:
                index += 1
            found[index][1].append(token.stats)
    return found


def document_shares(tokens: Iterable[TokenStats], voices: Sequence[VoiceWeight]) -> dict[str, float]:
    """Returns the posterior share of each document over some tokens; empty where no token has votes.

    Documents are compared on the tokens on which every one of them voted. Each other token, such as one that the gate
    decided alone, counts for the documents that voted for it, with its part of the tokens.

    Args:
        tokens: The tokens.
        voices: The voices that read a document, with their weights.
    """
    names = list(dict.fromkeys(voice.document for voice in voices))
    voted = [token for token in tokens if token.votes]
    if not names or not voted:
        return {}
    weights = member_weights(voices)
    logs = {name: math.log(sum(voice.weight for voice in voices if voice.document == name)) for name in names}
    alone = dict.fromkeys(names, 0.0)
    compared = 0
    for token in voted:
        found = document_probabilities(token.votes, weights)
        if len(found) == len(names):
            compared += 1
            for name in names:
                logs[name] += _log(found[name])
        else:
            for vote, share in zip(token.votes, _vote_shares(token.votes), strict=True):
                alone[vote.document] += share
    largest = max(logs.values())
    odds = {name: math.exp(value - largest) for name, value in logs.items()}
    total = sum(odds.values())
    return {name: (compared * odds[name] / total + alone[name]) / len(voted) for name in names}


def member_weights(voices: Iterable[VoiceWeight]) -> dict[tuple[str, str], float]:
    """Returns the mean weight of the voices of each document and member: one that reads several prompts has several."""
    weights: dict[tuple[str, str], list[float]] = {}
    for voice in voices:
        weights.setdefault((voice.document, voice.member), []).append(voice.weight)
    return {key: fmean(own) for key, own in weights.items()}


def document_probabilities(votes: Iterable[Vote], weights: Mapping[tuple[str, str], float]) -> dict[str, float]:
    """Returns the probability that each document that voted gives a token: the mean of its members', by their weights.

    Args:
        votes: The votes for the token.
        weights: `member_weights`.
    """
    found: dict[str, list[Vote]] = {}
    for vote in votes:
        found.setdefault(vote.document, []).append(vote)
    return {name: _mean_probability(own, weights) for name, own in found.items()}


def _mean_probability(votes: Sequence[Vote], weights: Mapping[tuple[str, str], float]) -> float:
    shares = normalise([weights[vote.document, vote.member] for vote in votes])
    return sum(share * vote.probability for share, vote in zip(shares, votes, strict=True))


def member_shares(tokens: Iterable[TokenStats]) -> dict[str, float]:
    """Returns by name each member's share of the votes for some tokens; empty where no token has votes.

    Votes of voices that read no document do not count.
    """
    voted = [token.votes for token in tokens if token.votes]
    shares: dict[str, float] = {}
    for votes in voted:
        for vote, share in zip(votes, _vote_shares(votes), strict=True):
            shares[vote.member] = shares.get(vote.member, 0.0) + share / len(voted)
    return shares


def _vote_shares(votes: Sequence[Vote]) -> list[float]:
    """Returns the shares of votes, with the sum 1 also where voices without a document voted as well."""
    total = sum(vote.share for vote in votes)
    return [vote.share / total if total > 0 else 1 / len(votes) for vote in votes]


def measure_doubt(
    tokens: Iterable[TokenStats],
    voices: Sequence[VoiceWeight] = (),
    shares: Mapping[str, float] | None = None,
    absence: AbsenceCalibration | None = None,
) -> Doubt | None:
    """Returns how sure some tokens are; None where nothing was combined and no token has votes.

    Args:
        tokens: The tokens.
        voices: The voices that read a document, with their weights. Default: none.
        shares: The posterior shares of the documents over the tokens. Default: none.
        absence: Predicts whether the documents contain the text. Default: none.
    """
    tokens = list(tokens)
    agreements = [token.agreement for token in tokens if token.agreement is not None]
    if not agreements and not shares:
        return None
    entropies = [token.entropy for token in tokens if token.entropy is not None]
    share = logprob = lift = None
    if shares:
        winner, weights = max(shares, key=lambda name: shares[name]), member_weights(voices)
        share = shares[winner]
        logs = [
            (_log(found[winner]), token.prior)
            for token in tokens
            if winner in (found := document_probabilities(token.votes, weights))
        ]
        logprob = _mean([own for own, _ in logs])
        lift = _mean([own - _log(prior) for own, prior in logs if prior is not None])
    doubt = Doubt(
        agreement=_mean(agreements),
        entropy=_mean(entropies),
        share=share,
        lift=lift,
        logprob=logprob,
        least_agreement=min(agreements, default=None),
    )
    return doubt if absence is None or not shares else absence.applied(doubt)


def _log(probability: float) -> float:
    return math.log(max(probability, _LEAST))


def _mean(values: Sequence[float]) -> float | None:
    return fmean(values) if values else None
