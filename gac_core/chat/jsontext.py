"""JSON read one character at a time: where an object ends, and the first character that JSON does not allow.

Strict (RFC 8259), and linear in the text. Knows nothing of what the object means.
"""

from __future__ import annotations

import re
from enum import Enum, auto

SPACE = " \t\n\r"
MAX_DEPTH = 100
_NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_LITERALS = ("true", "false", "null")
_HEX = "0123456789abcdefABCDEF"


class Expect(Enum):
    """What may come next: one of these, or the rest of what has begun."""

    OBJECT = auto()
    FIRST_KEY = auto()
    KEY = auto()
    COLON = auto()
    VALUE = auto()
    FIRST_ITEM = auto()
    AFTER = auto()
    STRING = auto()
    ESCAPE = auto()
    HEX = auto()
    NUMBER = auto()
    LITERAL = auto()
    NOTHING = auto()


class ObjectScanner:
    """Follows one JSON object through its characters.

    Attributes:
        expect: What may come next; `Expect.NOTHING` once the object is closed.
        depth: How many objects and arrays are open.
    """

    def __init__(self) -> None:
        self.expect = Expect.OBJECT
        self._open: list[str] = []
        self._word: list[str] = []
        self._is_key = False
        self._hex = 0

    @property
    def depth(self) -> int:
        """How many objects and arrays are open."""
        return len(self._open)

    def push(self, char: str) -> None:
        """Reads one character.

        Raises:
            ValueError: JSON does not allow it here.
        """
        if self.expect in (Expect.STRING, Expect.ESCAPE, Expect.HEX):
            self._in_string(char)
        elif self.expect is Expect.LITERAL:
            self._in_literal(char)
        elif self.expect is Expect.NUMBER and char not in SPACE + ",]}":
            self._word.append(char)
            if char not in "0123456789+-.eE":
                raise ValueError(f"{''.join(self._word)!r} is no number")
        else:
            if self.expect is Expect.NUMBER:
                self._end_number()
            if char not in SPACE:
                self._between(char)

    def _in_string(self, char: str) -> None:
        if self.expect is Expect.HEX:
            if char not in _HEX:
                raise ValueError(f"{char!r} is no hexadecimal digit")
            self._hex -= 1
            self.expect = Expect.HEX if self._hex else Expect.STRING
        elif self.expect is Expect.ESCAPE:
            if char not in '"\\/bfnrtu':
                raise ValueError(f"{char!r} cannot be escaped")
            self._hex = 4 if char == "u" else 0
            self.expect = Expect.HEX if self._hex else Expect.STRING
        elif char == '"':
            self.expect = Expect.COLON if self._is_key else Expect.AFTER
        elif char == "\\":
            self.expect = Expect.ESCAPE
        elif char < " ":
            raise ValueError(f"a string holds the control character {char!r}")

    def _in_literal(self, char: str) -> None:
        self._word.append(char)
        word = "".join(self._word)
        if word in _LITERALS:
            self.expect = Expect.AFTER
        elif not any(literal.startswith(word) for literal in _LITERALS):
            raise ValueError(f"{word!r} is no value")

    def _end_number(self) -> None:
        word = "".join(self._word)
        if not _NUMBER.fullmatch(word):
            raise ValueError(f"{word!r} is no number")
        self.expect = Expect.AFTER

    def _between(self, char: str) -> None:
        """Reads a character that is no white space and belongs to no string, number or literal."""
        expect = self.expect
        if expect is Expect.AFTER and char == ",":
            self.expect = Expect.KEY if self._open[-1] == "}" else Expect.VALUE
        elif char in "}]" and self._may_close(char):
            self._open.pop()
            self.expect = Expect.AFTER if self._open else Expect.NOTHING
        elif expect in (Expect.FIRST_KEY, Expect.KEY) and char == '"':
            self.expect, self._is_key = Expect.STRING, True
        elif expect is Expect.COLON and char == ":":
            self.expect = Expect.VALUE
        elif expect is Expect.OBJECT and char == "{":
            self._enter(char)
        elif expect in (Expect.VALUE, Expect.FIRST_ITEM):
            self._begin_value(char)
        else:
            raise ValueError(f"{char!r} cannot stand there")

    def _may_close(self, char: str) -> bool:
        if not self._open or self._open[-1] != char:
            return False
        return self.expect in (Expect.AFTER, Expect.FIRST_KEY if char == "}" else Expect.FIRST_ITEM)

    def _begin_value(self, char: str) -> None:
        self._word = [char]
        if char in "{[":
            self._enter(char)
        elif char == '"':
            self.expect, self._is_key = Expect.STRING, False
        elif char in "-0123456789":
            self.expect = Expect.NUMBER
        elif char in "tfn":
            self.expect = Expect.LITERAL
        else:
            raise ValueError(f"no value begins with {char!r}")

    def _enter(self, char: str) -> None:
        if self.depth == MAX_DEPTH:
            raise ValueError(f"it is nested more than {MAX_DEPTH} deep")
        self._open.append("}" if char == "{" else "]")
        self.expect = Expect.FIRST_KEY if char == "{" else Expect.FIRST_ITEM
