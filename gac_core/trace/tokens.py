"""The tokens of an answer as a page shows them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from gac_core.output import EffectiveSettings, RequestOutput
from gac_core.token_stats import MemberToken, TokenStats
from gac_core.trace.documents import DocumentView, VoteView, carrier, documents_of, votes_of
from gac_core.trace.levels import level_of
from gac_core.trace.visible import Piece, characters, label, pieces

_VOTES_SHOWN = 8


@dataclass(frozen=True)
class Proposal:
    """What one member proposed at a token.

    Attributes:
        member: Its name.
        index: Its place among the members that take part.
        token: Its most probable token, in visible form; of several the selected one, if it is among them.
        probability: Probability of this token, 0 to 1.
        selected: Probability of the selected token, 0 to 1.
        chosen: Whether that is the selected token.
        document: The document that it read; None without one.
    """

    member: str
    index: int
    token: str
    probability: float
    selected: float
    chosen: bool
    document: DocumentView | None = None

    @property
    def voice(self) -> str:
        """The member, with the letter of the document that it read."""
        return self.member if self.document is None else f"{self.member} on {self.document.letter}"


@dataclass(frozen=True)
class TokenView:
    """One token of an answer.

    Attributes:
        number: Its place in the answer, from 1.
        text: The characters that it completes, for the text; empty where it ends within a character.
        label: Its bytes in visible form; ``end of text`` for the end.
        data: Its bytes in hexadecimal.
        kind: ``"ensembled"``, ``"gate"`` (it decided alone), ``"forced"`` (by a grammar).
        is_end: Whether it is the end of the text.
        is_outside: Whether it comes after the answer's text: a stop string, or the beginning of another turn.
        confidence: As in `TokenStats`.
        agreement: As in `TokenStats`.
        divergence: As in `TokenStats`.
        unity: 1 less the share that the divergence has of the largest possible one; None without a divergence.
        proposals: By member, in the ensemble's order.
        decision: How it was selected, as a sentence.
        votes: What each voice with a document contributed, the largest share first; empty without documents.
        document: The document with the largest share of the votes; None without documents.
    """

    number: int
    text: tuple[Piece, ...]
    label: str
    data: str
    kind: str
    is_end: bool
    is_outside: bool
    confidence: float
    agreement: float | None
    divergence: float | None
    unity: float | None
    proposals: tuple[Proposal, ...]
    decision: str
    votes: tuple[VoteView, ...] = ()
    document: DocumentView | None = None

    @property
    def proposers(self) -> tuple[str, ...]:
        """Members whose most probable token it was."""
        return tuple(dict.fromkeys(each.member for each in self.proposals if each.chosen))

    @property
    def contested(self) -> bool:
        """Whether some of several members proposed another token."""
        return len(self.proposals) > 1 and not all(each.chosen for each in self.proposals)

    @property
    def mask(self) -> int:
        """The places of the members that proposed it, as bits."""
        return sum({1 << each.index for each in self.proposals if each.chosen})

    @property
    def level(self) -> str:
        """Name of the style of its confidence."""
        return f"c{level_of(self.confidence).number}"

    @property
    def classes(self) -> str:
        """Names of its styles: kind, and the levels of confidence, agreement and unity."""
        names = [self.kind, self.level]
        if self.agreement is not None:
            names.append(f"a{level_of(self.agreement).number}")
        if self.unity is not None:
            names.append(f"d{level_of(self.unity).number}")
        if self.kind == "gate":
            names.append(f"g{self.proposals[0].index % 8}" if self.proposals else "")
        elif self.kind == "ensembled":
            names.append(f"s{self.mask}")
        names += [] if self.document is None else [f"v{self.document.index % 8}"]
        names += ["outside"] if self.is_outside else []
        return " ".join(filter(None, names))

    @property
    def summary(self) -> str:
        """One line on it, for tooltips and screen readers."""
        parts = [f"Token {self.number}: {self.label}", f"confidence {self.confidence:.0%}", self.decision]
        parts += [
            f"document {each.document.letter} by {each.member} {each.share:.0%}" for each in self.votes[:_VOTES_SHOWN]
        ]
        parts += [
            f"{each.voice} proposed {each.token} with {each.probability:.0%}"
            for each in self.proposals
            if not each.chosen and each.document is None
        ]
        return ". ".join(part.rstrip(".") for part in parts) + "."


def token_views(output: RequestOutput, members: Sequence[str]) -> tuple[TokenView, ...]:
    """Returns the tokens of an answer.

    Args:
        output: The answer, with statistics of its tokens.
        members: Names of all members of the trace; their places give the proposals' ``index``.
    """
    stats = output.token_stats or ()
    texts = characters(each.token for each in stats)
    settings, inside = output.stats.settings, _tokens_inside(output)
    places = {name: index for index, name in enumerate(members)}
    documents = documents_of(output)
    views = [
        _view(number, each, text, settings, places, documents)
        for number, (each, text) in enumerate(zip(stats, texts, strict=True), 1)
    ]
    count = len(output.tokens)
    return tuple(
        replace(view, is_outside=inside < view.number <= count)
        if view.number <= count
        else replace(view, is_end=True, label="end of text")
        for view in views
    )


def _tokens_inside(output: RequestOutput) -> int:
    """Returns how many tokens begin before the end of the answer's text."""
    text = output.text.encode()
    start = b"".join(output.tokens).rfind(text) if text else -1
    if start < 0:
        return len(output.tokens)
    sizes = accumulate(len(token) for token in output.tokens)
    return 1 + sum(size < start + len(text) for size in sizes)


def _view(
    number: int,
    stats: TokenStats,
    text: bytes,
    settings: EffectiveSettings,
    places: Mapping[str, int],
    documents: Mapping[str, DocumentView],
) -> TokenView:
    proposals = tuple(_proposal(each, stats, places[each.member], documents) for each in stats.members)
    # The largest possible divergence depends on the weights: it is their entropy.
    weights = [1.0] * len(documents) if documents else [settings.weights[each.member] for each in stats.members]
    most = _entropy(weights)
    unity = None if stats.divergence is None or not most else max(0.0, 1 - stats.divergence / most)
    return TokenView(
        number=number,
        text=pieces(text),
        label=label(stats.token),
        data=stats.token.hex(" ").upper(),
        kind="forced" if stats.forced else "ensembled" if stats.ensembled else "gate",
        is_end=False,
        is_outside=False,
        confidence=stats.confidence,
        agreement=stats.agreement,
        divergence=stats.divergence,
        unity=unity,
        proposals=proposals,
        decision=_decision(stats, proposals, settings),
        votes=votes_of(stats.votes, documents),
        document=carrier(stats.votes, documents),
    )


def _proposal(entry: MemberToken, stats: TokenStats, index: int, documents: Mapping[str, DocumentView]) -> Proposal:
    # Of several most probable tokens each counts, as in the agreement.
    chosen = entry.selected >= entry.probability
    token = stats.token if chosen else entry.token
    return Proposal(
        member=entry.member,
        index=index,
        token=label(token) if token else "end of text",
        probability=entry.probability,
        selected=entry.selected,
        chosen=chosen,
        document=None if entry.document is None else documents[entry.document],
    )


def _entropy(weights: Iterable[float]) -> float:
    weights = list(weights)
    total = sum(weights)
    return -sum(weight / total * math.log(weight / total) for weight in weights)


def _decision(stats: TokenStats, proposals: Sequence[Proposal], settings: EffectiveSettings) -> str:
    """Returns how a token was selected, as a sentence."""
    if stats.forced:
        return "The grammar allowed no other token."
    if not stats.ensembled:
        gate = proposals[0].voice if proposals else settings.gate
        if settings.gate_rule == "confidence" and proposals:
            return f"The gate {gate} was {proposals[0].probability:.0%} sure and decided alone."
        return f"The gate {gate} decided alone: its {settings.gate_rule} reached the threshold."
    if len(proposals) == 1:
        return f"{proposals[0].voice} alone took part."
    what = "members" if all(each.document is None for each in proposals) else "voices"
    chosen = [each.voice for each in proposals if each.chosen]
    if len(chosen) == len(proposals):
        return f"All {len(proposals)} {what} proposed it."
    if not chosen:
        return f"No {what[:-1]} proposed it first: it won by the combined probabilities."
    named = f"{' and '.join(chosen)}, " if len(chosen) <= _VOTES_SHOWN else ""
    return f"Proposed by {named}{len(chosen)} of {len(proposals)} {what}."
