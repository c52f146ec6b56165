"""Incremental readers of one tool call: its name, its arguments as they are written, and whether it is valid."""

from __future__ import annotations

import json
import uuid
from typing import Any, NoReturn

from gac_core.chat.pieces import CallPiece
from gac_core.chat.tools import END_CALL, SPACE, InvalidToolCall, ToolCall
from gac_core.errors import quote

MAX_DEPTH = 100
"""Objects and arrays that may be open at once in a call."""

_ARGUMENTS = ("arguments", "parameters")
_CLOSING = {"{": "}", "[": "]"}
# What JSON allows outside of strings, beside brackets and white space.
_PLAIN = frozenset(":,+-.0123456789abcdefghijklmnopqrstuvwxyzE")


def new_call_id() -> str:
    """Returns a unique id for a call."""
    return f"call_{uuid.uuid4().hex}"


def _loads(text: str) -> Any:
    """Parses JSON strictly (RFC 8259); raises `ValueError` with the place and the reason."""
    try:
        return json.loads(text, parse_constant=_refuse)
    except json.JSONDecodeError as error:
        raise ValueError(f"invalid JSON at {quote(text[error.pos : error.pos + 20])}: {error.msg}") from error


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"invalid JSON: {constant} is not a JSON value")


class _ObjectScanner:
    """Finds the end of a JSON object, character by character; `_loads` checks the object once it is complete.

    Attributes:
        depth: How many objects and arrays are open.
        in_string: Whether the next character belongs to a string.
        closed: Whether the object is complete.
    """

    def __init__(self) -> None:
        self.depth = 0
        self.in_string = False
        self.closed = False
        self._escaped = False
        self._open: list[str] = []

    def push(self, char: str) -> None:
        """Reads one character.

        Raises:
            ValueError: No JSON object has this character here.
        """
        if self.in_string:
            if char < " ":
                raise ValueError(f"invalid JSON: a string contains the control character {char!r}")
            self.in_string = self._escaped or char != '"'
            self._escaped = char == "\\" and not self._escaped
        elif char in _CLOSING and (self._open or char == "{"):
            if self.depth == MAX_DEPTH:
                raise ValueError(f"the JSON is nested more than {MAX_DEPTH} levels deep")
            self._open.append(_CLOSING[char])
        elif self._open and char == self._open[-1]:
            self._open.pop()
            self.closed = not self._open
        elif self._open and char == '"':
            self.in_string = True
        elif char not in SPACE and not (self._open and char in _PLAIN):
            raise ValueError(f"invalid JSON: unexpected character {char!r}")
        self.depth = len(self._open)


class CallReader:
    """Reads one call, a character at a time.

    Args:
        index: Index of the call in the answer.

    Attributes:
        name: The tool's name; None until it is complete.
    """

    def __init__(self, index: int, name: str | None = None) -> None:
        self.index = index
        self.name = name
        self._id = new_call_id()
        self._scanner = _ObjectScanner()
        self._body: list[str] = []
        self._error: str | None = None
        # Where the arguments begin and end in the body, once that is known.
        self._begin: int | None = None
        self._end: int | None = None
        # Where the name stands; before the body it is negative.
        self._named: range | None = None
        # How many of their characters `flush` has returned, and whether it has returned a piece.
        self._sent = 0
        self._announced = False

    def push(self, char: str) -> bool:
        """Reads a character; returns whether it completes the call."""
        raise NotImplementedError

    def end(self, error: str | None = None) -> ToolCall | InvalidToolCall:
        """Returns the call.

        Args:
            error: Why it ends before it is complete. Default None: it is complete.
        """
        raise NotImplementedError

    @property
    def parts(self) -> tuple[range, ...]:
        """Where the name and the arguments stand, as far as they are known, in characters from the body's beginning."""
        known = (self._named, None if self._begin is None or self._end is None else range(self._begin, self._end))
        return tuple(part for part in known if part is not None)

    def flush(self) -> list[CallPiece]:
        """Returns what is new since the last time; nothing without a tool's name or once the call is malformed."""
        if self._error is not None or not self._is_tool():
            return []
        new = "" if self._begin is None else "".join(self._body[self._begin + self._sent : self._end])
        if self._announced and not new:
            return []
        first, self._announced = not self._announced, True
        self._sent += len(new)
        return [CallPiece(self.index, self._id if first else None, self.name if first else None, new)]

    def _is_tool(self) -> bool:
        return self.name is not None

    def _result(self, arguments: str, error: str | None, is_cut: bool) -> ToolCall | InvalidToolCall:
        if error is None and self.name is not None:
            return ToolCall(self._id, self.name, arguments)
        if not is_cut or self._begin is None:
            # Templates write a line break before the closing tag.
            arguments = arguments.strip(SPACE)
        return InvalidToolCall(self._id, self.name, arguments, error or "it has no name")


class TaggedCallReader(CallReader):
    """Reads a call from after its opening tag to its closing tag.

    The arguments are the value of ``arguments`` or of ``parameters``.

    Args:
        index: Index of the call in the answer.
        names: Names of the tools that may be called.
    """

    def __init__(self, index: int, names: frozenset[str]) -> None:
        super().__init__(index)
        self._names = names
        # The end of the body, where it may be the beginning of the closing tag.
        self._closing = ""
        # Keys at the top level, the last one, and the one whose value is read: None where a key is expected.
        self._keys: set[str] = set()
        self._last_key = ""
        self._key: str | None = None
        # Where the last string, object or array at the top level begins.
        self._start = 0

    def push(self, char: str) -> bool:
        """Reads a character; returns whether it completes the closing tag."""
        self._body.append(char)
        if self._error is None and not self._scanner.closed:
            try:
                self._read(char)
                return False
            except ValueError as error:
                self._error = str(error)
        return self._close(char)

    def end(self, error: str | None = None) -> ToolCall | InvalidToolCall:
        """Returns the call; ``error`` says why it ends without its closing tag."""
        is_cut = error is not None
        end = len(self._body) - (0 if is_cut else len(END_CALL))
        if self._error is None and (error is None or self.name is not None):
            # What follows complete arguments closes the call, also where it is incomplete.
            end = self._end or end
        error = self._error or error or self._missing()
        return self._result("".join(self._body[self._begin or 0 : end]), error, is_cut)

    def _is_tool(self) -> bool:
        return self.name in self._names

    def _missing(self) -> str | None:
        """Returns what is wrong with a call that is valid JSON, or None."""
        if self.name is None:
            return "it has no name"
        if not self._is_tool():
            return f"there is no tool {self.name!r}; tools are: {', '.join(sorted(self._names))}"
        return "it has no arguments" if self._begin is None else None

    def _close(self, char: str) -> bool:
        """Looks for the closing tag: directly after the object, or anywhere once the call is malformed."""
        self._closing += char
        while self._closing and not END_CALL.startswith(self._closing):
            if self._error is None and self._closing.strip(SPACE):
                self._error = f"unexpected {self._closing!r} between the JSON and {END_CALL}"
            self._closing = self._closing[1:]
        return self._closing == END_CALL

    def _read(self, char: str) -> None:
        """Reads a character of the object and notes keys and values at its top level."""
        scanner, place = self._scanner, len(self._body) - 1
        was_inside = scanner.in_string or scanner.depth > 1
        scanner.push(char)
        is_inside = scanner.in_string or scanner.depth > 1
        if scanner.closed:
            _loads("".join(self._body))
        elif was_inside and not is_inside:
            self._end_part(place + 1)
        elif is_inside and not was_inside:
            self._start = place
            self._begin_value(place, char)
        elif not is_inside and char == ":":
            self._key = self._last_key
        elif not is_inside and char == ",":
            self._key = None
        elif not is_inside and char not in SPACE + "{":
            self._begin_value(place, char)

    def _begin_value(self, place: int, char: str) -> None:
        if self._key == "name" and (char != '"' or self.name is not None):
            raise ValueError("its name is not a string")
        if self._key in _ARGUMENTS:
            if self._begin is not None:
                raise ValueError(f"it has more than one value for {' and '.join(_ARGUMENTS)}")
            self._begin = place
            if char != "{":
                raise ValueError(f"its {self._key} are not a JSON object")

    def _end_part(self, end: int) -> None:
        """Takes a string, object or array at the top level that is complete."""
        if self._key in _ARGUMENTS:
            self._end = end
        elif self._key in (None, "name"):
            value = str(_loads("".join(self._body[self._start : end])))
            if self._key == "name":
                self.name = value
                self._named = range(self._start, end)
            elif value in self._keys:
                raise ValueError(f"it has the key {value!r} twice")
            else:
                self._last_key = value
                self._keys.add(value)


class BareCallReader(CallReader):
    """Reads the arguments of a call without tags, and the braces that close it.

    A malformed call goes on to the end of the text.

    Args:
        index: Index of the call in the answer.
        name: The tool's name.
        braces: How many braces follow the arguments.
        distance: How many characters the name begins before the arguments.
    """

    def __init__(self, index: int, name: str, braces: int, distance: int) -> None:
        super().__init__(index, name)
        self._braces = braces
        self._begin = 0
        self._named = range(-distance, len(name) - distance)

    def push(self, char: str) -> bool:
        """Reads a character; returns whether it completes the call."""
        self._body.append(char)
        if self._error is not None:
            return False
        try:
            self._read(char)
        except ValueError as error:
            self._error = str(error)
        return self._error is None and self._end is not None and self._braces == 0

    def end(self, error: str | None = None) -> ToolCall | InvalidToolCall:
        """Returns the call; ``error`` says why it ends before its last brace."""
        end = self._end if self._error is None else None
        return self._result("".join(self._body[:end]), self._error or error, error is not None)

    def _read(self, char: str) -> None:
        if self._end is None:
            self._scanner.push(char)
            if self._scanner.closed:
                _loads("".join(self._body))
                self._end = len(self._body)
        elif char == "}":
            self._braces -= 1
        elif char not in SPACE:
            raise ValueError(f"unexpected {char!r} between the arguments and the end of the call")
