"""Sentences of a text, as ranges of characters."""

from __future__ import annotations

import re

# The end of a sentence with the white space that follows it. Languages that write no space between sentences end them
# with marks of their own.
_END = re.compile(r"(?:[.!?…]+[\"'”’»)\]]*(?=\s)|[。！？]+[」』”’）]*|\n)\s*")
_ABBREVIATION = re.compile(r"[(\"'“‘]*(?:[^\W\d_]|Mr|Mrs|Ms|Dr|Prof|St|Sr|Jr|vs|cf|ca|No|(?:[^\W\d_]\.)+[^\W\d_])\.")
_LONGEST = 16


def sentences(text: str) -> list[range]:
    """Returns the sentences of a text, without white space around them; none for a text of white space.

    A sentence ends at ``.``, ``!``, ``?`` or ``…`` before white space, at their full-width forms, and at the end of a
    line. A full stop does not end it after an initial, a common abbreviation or the number of an item, nor before a
    lower-case letter.
    """
    found, start = [], len(text) - len(text.lstrip())
    for end in _END.finditer(text, start):
        marks = end[0].rstrip()
        if marks == "." and "\n" not in end[0] and _continues(text, start, end.start(), end.end()):
            continue
        stop = start + len(text[start : end.start() + len(marks)].rstrip())
        if stop > start:
            found.append(range(start, stop))
        start = end.end()
    stop = len(text.rstrip())
    return [*found, range(start, stop)] if stop > start else found


def _continues(text: str, start: int, stop: int, following: int) -> bool:
    """Whether a sentence that begins at ``start`` goes on after the full stop at ``stop``."""
    word = text[max(start, stop - _LONGEST) : stop + 1].split()[-1]
    is_number = start + len(word) == stop + 1 and word[:-1].isdigit()
    return is_number or text[following : following + 1].islower() or _ABBREVIATION.fullmatch(word) is not None
