"""Encoding of text without control tokens, even where it contains their spellings.

Tokenizers turn the spelling of a control token into that token wherever it appears. A text is therefore encoded in
pieces, divided inside every such spelling, and the ids are checked. Spellings of one character or of white space are
exempt: they cannot be divided and do not structure a prompt.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property
from weakref import WeakKeyDictionary

from gac_core.errors import RequestError, UnwritableTextError
from gac_core.tokenization.tokenizer import MemberTokenizer

# Noncharacters, which Unicode reserves for internal use; one that a conversation does not contain serves as the mark.
_MARKS = tuple(chr(code) for code in range(0xFDD0, 0xFDF0))
# An unassigned character; its ids show whether the tokenizer has an id for unknown text.
_UNKNOWN = "\U000e0fff"


class Spellings:
    """Finds a set of words in texts, including overlapping occurrences.

    Args:
        words: The words; those of one character or of white space only are ignored.
    """

    def __init__(self, words: Iterable[str]) -> None:
        self.words = frozenset(word for word in words if len(word) > 1 and word.strip())
        lengths: dict[str, set[int]] = {}
        for word in self.words:
            lengths.setdefault(word[0], set()).add(len(word))
        # Even thousands of words have few different first characters and lengths.
        self._lengths = {first: sorted(each, reverse=True) for first, each in lengths.items()}
        self._first = re.compile("[" + "".join(map(re.escape, sorted(lengths))) + "]") if lengths else None

    def starts(self, text: str) -> list[int]:
        """Returns every index at which a word begins, ascending."""
        return [start for start, _ in self._found(text)]

    def count(self, text: str) -> int:
        """Returns the number of words that `read` returns."""
        return len(self.read(text))

    def read(self, text: str) -> list[str]:
        """Returns the words from left to right without overlaps, the longest word at each index."""
        words: list[str] = []
        end = 0
        for start, length in self._found(text):
            if start >= end:
                end = start + length
                words.append(text[start:end])
        return words

    def edges(self, text: str) -> tuple[bool, bool]:
        """Returns whether a word may form across the beginning of the text, and across its end, with adjacent text."""
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
        """Start and length of the longest word at each index."""
        if self._first is None:
            return
        for match in self._first.finditer(text):
            start = match.start()
            for length in self._lengths[match[0]]:
                if text[start : start + length] in self.words:
                    yield start, length
                    break


class _Control:
    """Spellings and ids of one tokenizer's control tokens."""

    def __init__(self, tokenizer: MemberTokenizer) -> None:
        self.spellings = Spellings(tokenizer.control_tokens.values())
        ids = {index for index, word in tokenizer.control_tokens.items() if word in self.spellings.words}
        unknown = tokenizer.hf.unk_token_id
        # Some tokenizers use one id for all text that they cannot spell; it does not indicate a control token.
        self.ids = ids - ({unknown} & set(tokenizer.encode_rendered(_UNKNOWN)))

    def first(self, ids: Iterable[int]) -> int | None:
        """Returns the first control id among ids, or None."""
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


def divided_spellings(tokenizer: MemberTokenizer, text: str) -> list[str]:
    """Returns a text in pieces, divided inside every spelling of a control token."""
    return _divided(text, control_spellings(tokenizer).starts(text))


# ---- texts


def encode_text(tokenizer: MemberTokenizer, text: str) -> list[int]:
    """Encodes a prompt, with the special tokens that the tokenizer adds, but no part of the text as a control token.

    A text without spellings of control tokens gets exactly the tokenizer's ids.

    Raises:
        RequestError: The text contains a lone surrogate, or a character that only a control token can write.
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
    """The text, divided after the character at each start."""
    ends = [start + 1 for start in starts]
    return [text[low:high] for low, high in zip([0, *ends], [*ends, len(text)], strict=True)]


def _without_control(tokenizer: MemberTokenizer, text: str, encode: Callable[[str], list[int]]) -> list[int]:
    """The ids of a piece, which is divided further where normalisation turns it into a control token."""
    control = _control(tokenizer)
    ids = encode(text)
    bad = control.first(ids)
    if bad is None:
        return ids
    # The shortest prefix with a control id; without its last character it has none.
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
            f"the prompt contains {char!r}, which member {tokenizer.name!r} can only write as its control token "
            f"{tokenizer.control_tokens[bad]!r}; remove the character, or set parse_special=True"
        ) from None


# ---- rendered conversations


def free_mark(texts: Iterable[str]) -> str:
    """Returns a mark: a noncharacter (U+FDD0 to U+FDEF) that none of the texts contains.

    Raises:
        RequestError: The texts contain all of them.
    """
    used = set().union(*map(set, texts))
    mark = next((char for char in _MARKS if char not in used), None)
    if mark is None:
        raise RequestError(
            "the conversation contains all of the noncharacters U+FDD0 to U+FDEF; remove at least one of them"
        )
    return mark


class Marker:
    """Inserts a mark after the first character of every spelling in a text.

    Args:
        spellings: The spellings.
        mark: The mark.
        edges: Whether to mark the edges of texts too, where these may form a spelling with the chat template's text.
            Default False.

    Attributes:
        has_edges: Whether a text so far had such an edge.
    """

    def __init__(self, spellings: Spellings, mark: str, edges: bool = False) -> None:
        self._spellings, self._mark, self._edges = spellings, mark, edges
        self.has_edges = False

    def __call__(self, text: str) -> str:
        """Returns the text with marks inserted."""
        marked = self._mark.join(_divided(text, self._spellings.starts(text)))
        before, behind = self._spellings.edges(text)
        self.has_edges |= before or behind
        return self._mark * (before and self._edges) + marked + self._mark * (behind and self._edges)


def encode_marked(tokenizer: MemberTokenizer, rendered: str, mark: str | None) -> list[int]:
    """Encodes a rendered conversation without its marks; marked spellings do not become control tokens.

    Args:
        tokenizer: The member's tokenizer.
        rendered: The rendered conversation.
        mark: The mark that a `Marker` inserted; None if nothing was marked and all spellings become control tokens.

    Raises:
        RequestError: The ids contain more control tokens than the template has written.
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
            f"a message contains text that the tokenizer of member {tokenizer.name!r} encodes as a control token, one "
            f"of {sorted({tokenizer.control_tokens[index] for index in found})}; remove it, or set parse_special=True"
        )
    return ids


def _encode_inside(tokenizer: MemberTokenizer, text: str) -> list[int]:
    """The ids of a text in the middle of another text, where tokenizers add no space before it."""
    for anchor in ("0", "\n", ".", "a"):
        head = tokenizer.encode_rendered(anchor)
        ids = tokenizer.encode_rendered(anchor + text)
        if ids[: len(head)] == head:
            return ids[len(head) :]
    return tokenizer.encode_rendered(text)
