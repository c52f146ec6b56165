"""Tokens on their way from a distribution to the text: sampled, then committed."""

from __future__ import annotations

from dataclasses import dataclass

from gac_core.decoding.sequence import Sequence
from gac_core.decoding.votes import TokenVotes
from gac_core.errors import GaCError
from gac_core.token_stats import MemberToken, TokenLogprob, TokenStats


@dataclass(frozen=True)
class SampledToken:
    """One token chosen for one request.

    Attributes:
        data: The bytes, or None for the end of text.
        ensembled: Whether all voices were combined; else the gate decided alone, or a grammar forced the token.
        logprob: Its log-probability and the most probable tokens, if the request asks for them.
        chosen_by: The voices that count as having chosen it themselves; they append it as the one token it is.
        forced: Whether a grammar allowed no other token.
        confidence: As in `TokenStats`.
        agreement: As in `TokenStats`.
        divergence: As in `TokenStats`.
        members: As in `TokenStats`; empty unless the request asks for it.
        votes: Which voices carried it, in a request with documents; else None.
    """

    data: bytes | None
    ensembled: bool
    logprob: TokenLogprob | None = None
    chosen_by: frozenset[Sequence] = frozenset()
    forced: bool = False
    confidence: float = 1.0
    agreement: float | None = None
    divergence: float | None = None
    members: tuple[MemberToken, ...] = ()
    votes: TokenVotes | None = None

    @property
    def token_stats(self) -> TokenStats:
        """Its statistics as callers read them."""
        votes = self.votes or TokenVotes()
        return TokenStats(
            token=self.data or b"",
            confidence=self.confidence,
            agreement=self.agreement,
            divergence=self.divergence,
            ensembled=self.ensembled,
            forced=self.forced,
            members=self.members,
            votes=votes.votes,
            prior=votes.prior,
            entropy=votes.entropy,
        )


@dataclass(frozen=True)
class CommittedToken:
    """A token that every voice's text contains now.

    Attributes:
        sampled: The token.
        context_full: Whether a voice's text is longer than its member can read, so that no token can follow.
    """

    sampled: SampledToken
    context_full: bool = False


TokenResult = CommittedToken | GaCError
"""What a step yields for a request, in order: committed tokens, and last the error that ended it, if any."""
