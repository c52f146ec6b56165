"""Text that must not become control tokens: where it spells one, and its ids without any.

Tokenizers turn the spelling of a control token into that token wherever it appears. A text is therefore encoded in
pieces, divided inside every such spelling, and the ids are checked. Spellings of one character and of white space are
exempt: they are no structure, and cannot be divided.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

from gac_core.errors import RequestError, UnwritableTextError
from gac_core.tokenization.tokenizer import MemberTokenizer

# Characters that Unicode keeps for a program's own use: one that the conversation lacks marks places in it.
_MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
# What a tokenizer gives an unassigned character shows whether it has an id for unknown text.
_UNKNOWN = "\U000e0fff"


class Spellings:
    """Finds words in texts, also where they overlap.

    Args:
        words: The words; those of one character and of white space alone are left out.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = frozenset(word for word in words if len(word) > 1 and word.strip())
        lengths: dict[str, set[int]] = {}
        for word in self.words:
            lengths.setdefault(word[0], set()).add(len(word))
        # Thousands of words begin with few different characters and have few different lengths.
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, sorted(lengths))) + "]") if lengths else None

    def starts(self, text: str) -> list[int]:
        """Returns every index of the text at which a word begins."""
        return [start for start, _ in self._found(text)]

    def count(self, text: str) -> int:
        """Returns how many words there are from left to right, the longest at each place, without overlaps."""
        return len(self.read(text))

    def read(self, text: str) -> list[str]:
        """Returns the words from left to right, the longest at each place, without overlaps."""
        words: list[str] = []
        end = 0
        for start, length in self._found(text):
            if start >= end:
                end = start + length
                words.append(text[start:end])
        return words

    def edges(self, text: str) -> tuple[bool, bool]:
        """Returns whether a word may come about where other text stands before this one, and where it stands behind."""
        if not text or (len(text) < self._longest and any(text in word for word in self.words)):
            return (bool(text.strip()),) * 2
        sizes = range(1, min(self._longest, len(text) + 1))
        before = not text[0].isspace() and any(text[:size] in self._tails for size in sizes)
        return before, not text[-1].isspace() and any(text[-size:] in self._heads for size in sizes)

    @cached_property
    def _longest(self) -> int:
        return max(map(len, self.words), default=0)

    @cached_property
    def _heads(self) -> frozenset[str]:
        return frozenset(word[:size] for word in self.words for size in range(1, len(word)))

    @cached_property
    def _tails(self) -> frozenset[str]:
        return frozenset(word[size:] for word in self.words for size in range(1, len(word)))

    def _found(self, text: str) -> Iterable[tuple[int, int]]:
        """Start and length of the longest word at each place."""
        if self._first is None:
            return
        for match in self._first.finditer(text):
            start = match.start()
            for length in self._lengths[match[0]]:
                if text[start : start + length] in self.words:
                    yield start, length
                    break


class _Control:
    """What one tokenizer must not make of plain text: its control tokens' spellings and ids."""

    def __init__(self, tokenizer: MemberTokenizer) -> None:
        self.spellings = Spellings(tokenizer.control_tokens.values())
        ids = {index for index, word in tokenizer.control_tokens.items() if word in self.spellings.words}
        unknown = tokenizer.hf.unk_token_id
        # Some tokenizers write an id for text that they cannot spell; it is no sign of a spelled control token.
        self.ids = ids - ({unknown} & set(tokenizer.encode_rendered(_UNKNOWN)))

    def first(self, ids: Iterable[int]) -> int | None:
        """Returns the first control id of some ids, or None."""
        return next((index for index in ids if index in self.ids), None)


_KNOWN: WeakKeyDictionary[MemberTokenizer, _Control] = WeakKeyDictionary()


def _control(tokenizer: MemberTokenizer) -> _Control:
    known = _KNOWN.get(tokenizer)
    if known is None:
        known = _KNOWN[tokenizer] = _Control(tokenizer)
    return known


def control_spellings(tokenizer: MemberTokenizer) -> Spellings:
    """Returns the spellings of the tokenizer's control tokens."""
    return _control(tokenizer).spellings


# ---- texts


def encode_text(tokenizer: MemberTokenizer, text: str) -> list[int]:
    """Encodes a prompt as the tokenizer does by itself, but none of its words as a control token.

    A text that spells no control token gets exactly the tokenizer's own ids. What the tokenizer adds by itself, such as
    its BOS, stays.

    Raises:
        RequestError: The text holds a lone surrogate, or characters that only a control token of the member writes.
    """
    control = _control(tokenizer)
    starts = control.spellings.starts(text)
    before, after = tokenizer.added_around
    if not starts:
        ids = tokenizer.encode_whole(text)
        if control.first(ids[len(before) : len(ids) - len(after)]) is None:
            return tokenizer.without_end(ids)
    first, *rest = _divided(text, starts)
    ids = list(before)
    ids += _without_control(tokenizer, first, tokenizer.encode_rendered)
    for piece in rest:
        ids += _without_control(tokenizer, piece, lambda text: _encode_inside(tokenizer, text))
    return tokenizer.without_end([*ids, *after])


def _divided(text: str, starts: Sequence[int]) -> list[str]:
    """The text, divided behind the character at each start."""
    ends = [start + 1 for start in starts]
    return [text[low:high] for low, high in zip([0, *ends], [*ends, len(text)], strict=True)]


def _without_control(tokenizer: MemberTokenizer, text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """The ids of a piece; divided further where a normaliser makes it spell a control token."""
    control = _control(tokenizer)
    ids = encode(text)
    bad = control.first(ids)
    if bad is None:
        return ids
    # The shortest beginning with a control id; without its last character it has none.
    length = bisect_left(range(1, len(text)), True, key=lambda n: control.first(encode(text[:n])) is not None) + 1
    if length == 1:
        head = _written(tokenizer, text[0], bad)
    else:
        head, length = _without_control(tokenizer, text[: length - 1], encode), length - 1
    rest = text[length:]
    return head + (_without_control(tokenizer, rest, lambda part: _encode_inside(tokenizer, part)) if rest else [])


def _written(tokenizer: MemberTokenizer, char: str, bad: int) -> list[int]:
    try:
        return list(tokenizer.encode_bytes(char.encode()))
    except UnwritableTextError:
        raise RequestError(
            f"the prompt holds {char!r}, which member {tokenizer.name!r} can write by its control token "
            f"{tokenizer.control_tokens[bad]!r} only; leave the character out, or set parse_special=True"
        ) from None


# ---- rendered conversations


def free_mark(texts: Iterable[str]) -> str:
    """Returns a character that none of the texts holds.

    Raises:
        RequestError: They hold all that could be taken.
    """
    held = set().union(*map(set, texts))
    mark = next((char for char in _MARKS if char not in held), None)
    if mark is None:
        raise RequestError(
            "the conversation holds all of the characters U+FDD0 to U+FDEF, which stand for no text; leave them out"
        )
    return mark


class Marker:
    """Puts a mark behind the first character of all spellings in a text.

    Args:
        spellings: What is marked.
        mark: The mark.
        edges: Whether texts are marked at their edges too, where these may become a spelling together with what a chat
            template writes beside them. Default False.

    Attributes:
        has_edges: Whether there was a text with such an edge.
    """

    def __init__(self, spellings: Spellings, mark: str, edges: bool = False) -> None:
        self._spellings, self._mark, self._edges = spellings, mark, edges
        self.has_edges = False

    def __call__(self, text: str) -> str:
        """Returns the text with its marks."""
        marked = self._mark.join(_divided(text, self._spellings.starts(text)))
        before, behind = self._spellings.edges(text)
        self.has_edges |= before or behind
        return self._mark * (before and self._edges) + marked + self._mark * (behind and self._edges)


def encode_marked(tokenizer: MemberTokenizer, rendered: str, mark: str | None) -> list[int]:
    """Encodes a rendered conversation without its marks; what holds one becomes no control token.

    Args:
        tokenizer: The member's.
        rendered: The conversation.
        mark: What a `Marker` put into it; None: no mark, and any words may become control tokens.

    Raises:
        RequestError: There are more control tokens than the template has written.
    """
    if mark is None:
        return tokenizer.encode_rendered(rendered)
    control = _control(tokenizer)
    first, *rest = rendered.split(mark)
    ids = tokenizer.encode_rendered(first)
    for text in rest:
        ids += _encode_inside(tokenizer, text)
    found = [index for index in ids if index in control.ids]
    if len(found) > sum(map(control.spellings.count, (first, *rest))):
        raise RequestError(
            f"a message holds text of which the tokenizer of member {tokenizer.name!r} makes a control token, one of "
            f"{sorted({tokenizer.control_tokens[index] for index in found})}; take it out, or set parse_special=True"
        )
    return ids


def _encode_inside(tokenizer: MemberTokenizer, text: str) -> list[int]:
    """The ids of a text in the middle of another one, where tokenizers put no space before it."""
    for anchor in ("0", "\n", ".", "a"):
        head = tokenizer.encode_rendered(anchor)
        ids = tokenizer.encode_rendered(anchor + text)
        if ids[: len(head)] == head:
            return ids[len(head) :]
    return tokenizer.encode_rendered(text)
