"""Boundary alignment: members vote on text, not on tokens, so that two cuts of one word do not compete.

With the paper's alignment ``" Washington"`` of one member and ``" Wash"`` of another split the vote of two members that
mean the same. Here a member is asked how probable it is that its text *starts with* some bytes, whatever its tokens
are; what members agree on is committed, and a member whose own token goes on after these bytes waits with it. Pure
functions on distributions; knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from gac_core.vocabulary import UnionVocabulary

# Some bytes, or None for the end of text.
Text = bytes | None
# Yields ids after a member's text, by member; takes distributions after each, ``[ids, union]``; returns text and score.
Ahead = Generator[dict[int, tuple[int, ...]], Mapping[int, Tensor], tuple[Text, float]]


class View:
    """What one member says of the text to come.

    Args:
        union: The union vocabulary.
        probs: The member's distribution after its ids, shape ``[union]``.
        waiting: Committed bytes after its ids; its next token starts with them and goes on.
    """

    # At or below this probability a token says nothing.
    NONE = 1e-9

    def __init__(self, union: UnionVocabulary, probs: Tensor, waiting: bytes = b"") -> None:
        self.union = union
        self.probs = probs
        self.waiting = waiting
        self.range = self._longer(waiting) if waiting else (0, len(union))
        # A member may have waited on ever less probable tokens; what is left may round to nothing.
        self.total = max(float(probs[self.range[0] : self.range[1]].sum()), 1e-30)

    def _longer(self, data: bytes) -> tuple[int, int]:
        """The range of tokens that start with some bytes and go on."""
        low, high = self.union.starting_with(data)
        return (low + 1 if low < high and self.union.tokens[low] == data else low), high

    def _text(self, index: int) -> Text:
        data = self.union.data(index)
        return None if data is None else data[len(self.waiting) :]

    def top(self, k: int) -> list[tuple[Text, float]]:
        """Returns the k most probable tokens, without what is waiting, and their probabilities."""
        part = self.probs[self.range[0] : self.range[1]]
        best = torch.topk(part, min(k, part.numel()))
        pairs = zip(best.indices.tolist(), best.values.tolist(), strict=True)
        return [(self._text(self.range[0] + index), value / self.total) for index, value in pairs]

    def first(self) -> tuple[Text, float]:
        """Returns the most probable token, the smallest among equals, and its probability."""
        part = self.probs[self.range[0] : self.range[1]]
        index = int(part.argmax())
        return self._text(self.range[0] + index), float(part[index]) / self.total

    def token(self, data: Text) -> float:
        """Returns the probability that the next token is exactly this one."""
        index = self.union.end_id if data is None else self.union.ids.get(self.waiting + data)
        if index is None or (data is None and self.waiting):
            return 0.0
        return float(self.probs[index]) / self.total

    def mass(self, data: bytes) -> float:
        """Returns the probability that the next token starts with these bytes."""
        low, high = self.union.starting_with(self.waiting + data)
        return float(self.probs[low:high].sum()) / self.total

    def going_on(self, data: bytes) -> float:
        """Returns the probability of the most probable token that starts with these bytes and goes on."""
        low, high = self._longer(self.waiting + data)
        return float(self.probs[low:high].max()) / self.total if low < high else 0.0

    def fit(self, data: bytes, head: bytes, average: float = float("inf")) -> tuple[bytes, bool]:
        """Tells how the bytes that wait, and some more, become the member's own tokens.

        Args:
            data: The bytes after those that wait.
            head: The first piece of the tokenizer's own cut of all of them.
            average: The probability of exactly these bytes as a token in the combined distribution.

        Returns:
            The bytes that become ids now, and whether they are one token that the member chose. None of them: its next
            token starts with all of them and goes on. Some: its token ends earlier. All, but not chosen: what the
            member says does not help, or helps no more than the tokenizer's own cut.
        """
        full = self.waiting + data
        exact, longer = self.token(data), self.going_on(data)
        if exact >= max(longer, average / 2) and exact > self.NONE:
            return full, True
        starts = range(len(self.waiting) + 1, len(full))
        shorter, length = max(((self.token(full[len(self.waiting) : k]), k) for k in starts), default=(0.0, 0))
        if max(longer, shorter) <= self.NONE:
            return full, False
        if longer >= shorter:
            return b"", False
        return (full, False) if full[:length] == head else (full[:length], True)


def agreed(firsts: list[Text]) -> tuple[bool, Text]:
    """Whether first choices are starts of one text, and the shortest of them; the end agrees with the end alone."""
    if any(text is None for text in firsts):
        return all(text is None for text in firsts), None
    texts = sorted((text for text in firsts if text is not None), key=len)
    return all(text.startswith(texts[0]) and texts[-1].startswith(text) for text in texts), texts[0]


@dataclass(frozen=True)
class Cut:
    """How a member would write some bytes.

    Attributes:
        ids: Its ids.
        pieces: The bytes of each id.
    """

    ids: tuple[int, ...]
    pieces: tuple[bytes, ...]


CutOf = Callable[[int, bytes], Cut | None]


class Vote:
    """Decides what text comes next when the members' first choices differ.

    Candidates are the members' most probable tokens; one that starts another gives way to the longer one, so that all
    end at like boundaries. A candidate's score is the weighted mean of the probabilities that a member's text starts
    with it. Where a member would write it as several ids, only an upper bound is known at first; it is made exact by
    looking ahead, for the leading candidate alone, until the leader is exact.

    Args:
        views: Per member its view.
        weights: Per member its weight; those of the views sum to one.
        cut_of: Tells how a member would write some bytes; None if it cannot.
    """

    CANDIDATES, ROUNDS, LEAST = 8, 4, 1e-3

    def __init__(self, views: Mapping[int, View], weights: Mapping[int, float], cut_of: CutOf) -> None:
        self._views = views
        self._weights = weights
        self._cut_of = cut_of
        # Per (member, candidate) the exact probability of writing it as several ids.
        self._known: dict[tuple[int, bytes], float] = {}
        self._candidates: set[bytes] = set()
        for view in views.values():
            self._candidates.update(text for text, _ in view.top(self.CANDIDATES) if text)

    def run(self) -> Ahead:
        """Yields what to look ahead for; takes what members say there; returns the text and its score."""
        end = sum(self._weights[member] * view.token(None) for member, view in self._views.items())
        for _ in range(self.ROUNDS):
            text, score, unknown = self._leader()
            if end >= score:
                return None, end
            if not unknown:
                return text, score
            told = yield {member: cut.ids[:-1] for member, cut in unknown.items()}
            for member, cut in unknown.items():
                self._learn(member, text, cut, told.get(member))
        text, score, _ = self._leader(only_known=True)
        return (None, end) if end >= score else (text, score)

    def _learn(self, member: int, text: bytes, cut: Cut, told: Tensor | None) -> None:
        """Files the probability of a cut, and what the member would write instead after its first id."""
        if told is None:
            self._known[member, text] = 0.0
            return
        view = self._views[member]
        after = [View(view.union, row) for row in told]
        chance = view.token(cut.pieces[0][len(view.waiting) :])
        for piece, said in zip(cut.pieces[1:-1], after, strict=False):
            chance *= said.token(piece)
        self._known[member, text] = chance * after[-1].mass(cut.pieces[-1])
        following, _ = after[0].first()
        if following is not None:
            self._candidates.add((cut.pieces[0] + following)[len(view.waiting) :])

    def _leader(self, only_known: bool = False) -> tuple[bytes, float, dict[int, Cut]]:
        """The candidate with the highest score (or bound), and the cuts that keep it from being exact."""
        best: tuple[bytes, float, dict[int, Cut]] = (b"", -1.0, {})
        ordered = sorted(self._candidates)
        for index, text in enumerate(ordered):
            # In sorted order a text stands right before those that it starts.
            if index + 1 < len(ordered) and ordered[index + 1].startswith(text):
                continue
            score, unknown = 0.0, {}
            for member, view in self._views.items():
                part = view.mass(text) + self._known.get((member, text), 0.0)
                cut = None if (member, text) in self._known else self._cut_of(member, view.waiting + text)
                head = 0.0 if cut is None else self._head(view, cut)
                if head >= self.LEAST and cut is not None and not only_known:
                    unknown[member] = cut
                    part += head
                score += self._weights[member] * part
            if score > best[1]:
                best = (text, score, unknown)
        return best

    @staticmethod
    def _head(view: View, cut: Cut) -> float:
        """The probability of a cut's first id where the cut has several: no cut is more probable than that."""
        if len(cut.ids) == 1 or len(cut.pieces[0]) <= len(view.waiting):
            return 0.0
        return view.token(cut.pieces[0][len(view.waiting) :])
