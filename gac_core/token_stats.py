"""Statistics of single tokens: `TokenLogprob`, `TokenStats`, `MemberToken` and `Vote`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenLogprob:
    """Log-probabilities at one position.

    Attributes:
        token: Bytes of the selected union token; empty for the end of text.
        logprob: Natural logarithm of its probability in the combined distribution.
        top: The most probable tokens and their log-probabilities, best first.
        rank: 1 more than the number of tokens with a larger probability; 1 for the most probable one.
    """

    token: bytes
    logprob: float
    top: tuple[tuple[bytes, float], ...] = ()
    rank: int = 1


@dataclass(frozen=True)
class MemberToken:
    """What one member's own distribution says at one position, normalised over the tokens that a grammar allows.

    Attributes:
        member: The member's name.
        token: Bytes of its most probable allowed token, of several the one with the lowest union id; empty for the end
            of text.
        probability: Probability of this token, 0 to 1.
        selected: Probability of the selected token (`TokenStats.token`), 0 to 1.
        document: Id of the document that the member read; None without one.
    """

    member: str
    token: bytes
    probability: float
    selected: float
    document: str | None = None


@dataclass(frozen=True)
class Vote:
    """What one voice contributed to a selected token.

    Attributes:
        document: Id of the document that the voice reads.
        member: Name of the member.
        share: Its share of the vote for the token, 0 to 1; those of all voices sum to 1.
        probability: Probability that the voice itself gives the token, 0 to 1.
    """

    document: str
    member: str
    share: float
    probability: float


@dataclass(frozen=True)
class TokenStats:
    """Confidence and agreement of the members at one position.

    Attributes:
        token: Bytes of the selected union token; empty for the end of text.
        confidence: Its probability in the combined distribution (the gate's where it decided alone), among the tokens
            that the grammar allows, before temperature and truncation; 1 for a token that a grammar forced.
        agreement: Share of the members whose most probable allowed token it was, 0 to 1. None unless several members'
            distributions were combined.
        divergence: Jensen-Shannon divergence of the members' distributions, with their weights, in nats: 0 if they are
            equal, at most the logarithm of the number of members. None unless several were combined, and where the
            token was proven from the most probable tokens of each distribution alone.
        ensembled: Whether all members' distributions were combined; otherwise the gate decided alone, or a grammar
            forced the token.
        forced: Whether the grammar allowed this token only.
        members: An entry for each member whose distribution was used, in the ensemble's order: for the gate alone where
            it decided alone, none for a forced token. A member that gives no allowed token any probability has none.
        votes: In a request with documents, an entry for each voice that reads one and whose distribution was used; none
            for a forced token.
        prior: In a request with documents, the probability that the prior gives the token, its members combined; None
            without a prior.
        entropy: In a request with documents, the entropy of the combined distribution, in nats.
    """

    token: bytes
    confidence: float
    agreement: float | None = None
    divergence: float | None = None
    ensembled: bool = True
    forced: bool = False
    members: tuple[MemberToken, ...] = ()
    votes: tuple[Vote, ...] = ()
    prior: float | None = None
    entropy: float | None = None
