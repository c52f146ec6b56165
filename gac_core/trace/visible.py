"""Text and bytes of tokens in a form in which every character can be seen and none has an effect."""

from __future__ import annotations

import codecs
import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

Kind = Literal["text", "space", "tab", "newline", "code"]

# They select a variant of the character before them.
_SELECTORS = re.compile("[\ufe00-\ufe0f\U000e0100-\U000e01ef]")
_KINDS: dict[str, Kind] = {" ": "space", "\t": "tab", "\n": "newline"}
_MARKS = {"space": "\u2423", "tab": "\u21e5", "newline": "\u21b5"}


@dataclass(frozen=True)
class Piece:
    """A part of a text.

    Attributes:
        text: What to show: characters of the text, or the name of a character or byte that would not be visible.
        kind: ``"text"``; ``"space"``: spaces; ``"tab"``; ``"newline"``: the end of a line; ``"code"``: a name, such as
            ``U+202E`` for a character or ``E2`` for a byte that is not part of valid UTF-8.
    """

    text: str
    kind: Kind


def is_hidden(char: str) -> bool:
    """Whether a character is not visible by itself or has an effect on others: controls, formats, unusual spaces."""
    return not char.isprintable() or _SELECTORS.match(char) is not None


def pieces(data: bytes) -> tuple[Piece, ...]:
    """Returns bytes in a visible form; those that are not valid UTF-8 as hexadecimal codes."""
    found: list[Piece] = []
    for char in data.decode("utf-8", errors="surrogateescape"):
        piece = _piece(char, first=not found)
        if found and piece.kind in ("text", "space") and found[-1].kind == piece.kind:
            piece = Piece(found.pop().text + piece.text, piece.kind)
        found.append(piece)
    return tuple(found)


def _piece(char: str, first: bool) -> Piece:
    if char in _KINDS:
        return Piece(char, _KINDS[char])
    if "\udc80" <= char <= "\udcff":
        return Piece(f"{ord(char) - 0xDC00:02X}", "code")
    if is_hidden(char):
        return Piece(f"U+{ord(char):04X}", "code")
    # A combining mark without a character before it gets a dotted circle.
    return Piece(f"\u25cc{char}" if first and unicodedata.category(char).startswith("M") else char, "text")


def label(data: bytes) -> str:
    """Returns bytes as one line in which spaces and line ends are visible, for tables and accessible names."""
    return "".join(_marked(piece) for piece in pieces(data))


def _marked(piece: Piece) -> str:
    if piece.kind == "code":
        return f"<{piece.text}>"
    return piece.text if piece.kind == "text" else _MARKS[piece.kind] * len(piece.text)


def named(text: str) -> str:
    """Returns a text in which hidden characters other than line ends and tabs are written as ``<U+202E>``."""
    if text.isprintable() and not _SELECTORS.search(text):
        return text
    return "".join(f"<U+{ord(char):04X}>" if is_hidden(char) and char not in "\n\t" else char for char in text)


def printable(text: str) -> str:
    """Returns a text that can be written to a terminal: no character moves the cursor or changes the order of others.

    Line ends and tabs stay; other hidden characters become ``<U+001B>``. Joiners and variation selectors stay, which
    emoji and some scripts need.
    """
    return "".join(char if _is_harmless(char) else named(char) for char in text)


def _is_harmless(char: str) -> bool:
    joins = char in "\u200c\u200d" or _SELECTORS.match(char) is not None
    return joins or unicodedata.category(char) == "Zs"


def characters(tokens: Iterable[bytes]) -> list[bytes]:
    """Returns for each token the bytes of the characters that it completes.

    A character whose bytes are several tokens belongs to the last of them, so that the others have none. Bytes that no
    later token makes valid UTF-8 belong to the token with which that is certain.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
    found = [decoder.decode(token) for token in tokens]
    if found:
        found[-1] += decoder.decode(b"", final=True)
    return [text.encode("utf-8", errors="surrogateescape") for text in found]
