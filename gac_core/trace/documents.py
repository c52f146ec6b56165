"""What a page shows of documents: a letter for each, and the citations of an answer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from gac_core.attribution import Citation
from gac_core.doubt import Doubt
from gac_core.output import RequestOutput
from gac_core.token_stats import Vote


@dataclass(frozen=True)
class DocumentView:
    """A document of an answer.

    Attributes:
        index: Its place by posterior share, from 0 for the largest.
        letter: Stands for it: ``"A"`` for the first, ``"AA"`` for the 27th.
        id: Its id.
        share: Its posterior share of the answer, 0 to 1.
        text: Its text; None where it is not known.
    """

    index: int
    letter: str
    id: str
    share: float
    text: str | None


@dataclass(frozen=True)
class CitationView:
    """A citation.

    Attributes:
        text: The span of the answer.
        document: The document that carried it.
        share: The document's posterior share, 0 to 1.
        members: The members' shares of its votes, as text.
        facts: How sure it is, as text.
    """

    text: str
    document: DocumentView
    share: float
    members: str
    facts: str


@dataclass(frozen=True)
class VoteView:
    """What one voice contributed to a token.

    Attributes:
        document: The document that the voice read.
        member: Name of the member.
        share: As in `Vote`.
        probability: As in `Vote`.
    """

    document: DocumentView
    member: str
    share: float
    probability: float


def letter(index: int) -> str:
    """Returns the letters that stand for a document: A to Z, AA, AB, ..."""
    first, last = divmod(index, 26)
    return (letter(first - 1) if first else "") + chr(ord("A") + last)


def documents_of(output: RequestOutput, texts: Mapping[str, str] | None = None) -> dict[str, DocumentView]:
    """Returns the documents of an answer by id, the one with the largest share first.

    An answer whose text a grammar forced has no shares; its documents are those of the votes, with a share of 0.

    Args:
        output: The answer, with statistics of its tokens.
        texts: Their texts by id. Default: not known.
    """
    voted = {vote.document: 0.0 for stats in output.token_stats or () for vote in stats.votes}
    ordered = sorted({**voted, **output.document_shares}.items(), key=lambda pair: (-pair[1], pair[0]))
    return {
        name: DocumentView(index, letter(index), name, share, (texts or {}).get(name))
        for index, (name, share) in enumerate(ordered)
    }


def citations_of(output: RequestOutput, documents: Mapping[str, DocumentView]) -> list[CitationView]:
    """Returns the citations of an answer."""
    return [_citation(citation, documents) for citation in output.citations]


def _citation(citation: Citation, documents: Mapping[str, DocumentView]) -> CitationView:
    members = ", ".join(f"{name} {share:.0%}" for name, share in citation.members.items())
    return CitationView(
        citation.text, documents[citation.document], citation.share, members, doubt_facts(citation.doubt)
    )


def doubt_facts(doubt: Doubt) -> str:
    """Returns how sure something is, as text."""
    facts = []
    if doubt.agreement is not None:
        facts.append(f"agreement {doubt.agreement:.0%}")
    if doubt.entropy is not None:
        facts.append(f"entropy {doubt.entropy:.2f} nats")
    if doubt.lift is not None:
        facts.append(f"lift {doubt.lift:+.2f} nats")
    if doubt.not_in_documents is not None:
        facts.append(f"not in the documents {doubt.not_in_documents:.0%}")
    return ", ".join(facts)


def votes_of(votes: Iterable[Vote], documents: Mapping[str, DocumentView]) -> tuple[VoteView, ...]:
    """Returns the votes for a token, the largest share first."""
    ordered = sorted(votes, key=lambda vote: -vote.share)
    return tuple(VoteView(documents[vote.document], vote.member, vote.share, vote.probability) for vote in ordered)


def carrier(votes: Iterable[Vote], documents: Mapping[str, DocumentView]) -> DocumentView | None:
    """Returns the document with the largest share of the votes for a token; None without votes."""
    shares: dict[str, float] = {}
    for vote in votes:
        shares[vote.document] = shares.get(vote.document, 0.0) + vote.share
    return documents[max(shares, key=lambda name: shares[name])] if shares else None
