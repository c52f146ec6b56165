"""Which characters of an answer each of its tokens wrote."""

from __future__ import annotations

import codecs
from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass


def character_ranges(tokens: Iterable[bytes]) -> list[range]:
    """Returns the characters of a text that each of its tokens writes, in whole or in part.

    Bytes that are not valid UTF-8 are characters U+FFFD, as in ``bytes.decode(errors="replace")``. A character whose
    bytes are several tokens belongs to each of them.

    Args:
        tokens: The tokens that the text consists of.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    ranges, count = [], 0
    for token in tokens:
        start = count
        count += len(decoder.decode(token))
        unfinished = bool(decoder.getstate()[0])
        ranges.append(range(start, count + unfinished if token else start))
    return ranges


@dataclass
class _Part:
    """A part of a text: its first character, the one after its last, and how many were kept before it."""

    start: int
    end: int
    offset: int


class KeptText:
    """The parts of a text that were kept, in order, and where its characters are in them.

    Example:
        >>> kept = KeptText()
        >>> kept.add(4, 6)
        >>> kept.add(9, 12)
        >>> kept.place(range(5, 10))
        range(1, 3)
    """

    def __init__(self) -> None:
        self._parts: list[_Part] = []
        self._length = 0

    def add(self, start: int, end: int) -> None:
        """Adds the part from ``start`` to before ``end``, which begins at the end of the last part or later."""
        if self._parts and self._parts[-1].end == start:
            self._parts[-1].end = end
        else:
            self._parts.append(_Part(start, end, self._length))
        self._length += end - start

    def place(self, characters: range) -> range:
        """Returns where characters of the whole text are among those that were kept; empty if none was."""
        return range(self._before(characters.start), self._before(characters.stop))

    def _before(self, character: int) -> int:
        """Returns how many of the characters before one of the whole text were kept."""
        index = bisect_right(self._parts, character, key=lambda part: part.start) - 1
        if index < 0:
            return 0
        part = self._parts[index]
        return part.offset + min(character, part.end) - part.start
