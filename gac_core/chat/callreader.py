"""Incremental readers of one tool call: its name, its arguments, and whether it is valid."""

from __future__ import annotations

import json
import uuid

from gac_core.chat.jsontext import SPACE, Expect, ObjectScanner
from gac_core.chat.pieces import CallPiece
from gac_core.chat.tools import END_CALL, InvalidToolCall, ToolCall, is_object

UNREADABLE = "the arguments cannot be read as a JSON object"
_ARGUMENTS = ("arguments", "parameters")


def new_call_id() -> str:
    """Returns an id for a call."""
    return f"call_{uuid.uuid4().hex}"


class TaggedCallReader:
    """Reads one call, from behind its opening tag to its closing one.

    The arguments are the value of ``arguments`` or of ``parameters``.

    Args:
        index: Which call of the answer it is.
        names: The tools that may be called.
    """

    def __init__(self, index: int, names: frozenset[str]) -> None:
        self.index = index
        self._names = names
        self._id = new_call_id()
        self._scanner = ObjectScanner()
        self._body: list[str] = []
        self._error: str | None = None
        self._closing = ""
        self._key = ""
        # Where the key or value at the object's top began that is being read, and where those before it stand.
        self._since: int | None = None
        self._spans: dict[str, tuple[int, int]] = {}
        self._name: str | None = None
        self._begun: int | None = None
        self._arguments = ""
        self._told = False
        self._sent = 0

    @property
    def name(self) -> str | None:
        """The tool's name, once it is known."""
        return self._name

    def push(self, char: str) -> bool:
        """Reads a character; True if it ends the closing tag."""
        self._body.append(char)
        if self._error is None and self._scanner.expect is not Expect.NOTHING:
            try:
                self._read(char)
                return False
            except ValueError as error:
                self._error = f"it is no call in JSON: {error}"
        return self._close(char)

    def flush(self) -> list[CallPiece]:
        """Returns what can be told since the last time: nothing before the name is known and is a tool's."""
        if self._error is not None or self._name not in self._names:
            return []
        new = ""
        if self._begun is not None:
            end = self._spans.get(self._arguments, (0, len(self._body)))[1]
            new = "".join(self._body[self._begun + self._sent : end])
            self._sent += len(new)
        if self._told and not new:
            return []
        first = not self._told
        self._told = True
        return [CallPiece(self.index, self._id if first else None, self._name if first else None, new)]

    def end(self, error: str | None = None) -> ToolCall | InvalidToolCall:
        """Returns the call.

        Args:
            error: What ended it, where that was not its closing tag.
        """
        raw = "".join(self._body[self._begun or 0 :])
        if error is None:
            raw = raw[: -len(END_CALL)]
        error = self._error or error
        if error is None:
            span = self._spans.get(self._arguments)
            if span is not None:
                raw = "".join(self._body[slice(*span)])
            error = self._lacks(raw)
        if error is None and self._name is not None:
            return ToolCall(self._id, self._name, raw)
        # Without the line break that templates put before the closing tag.
        return InvalidToolCall(self._id, self._name, raw.strip(SPACE), error or "it has no name")

    def _lacks(self, arguments: str) -> str | None:
        """What a call that is sound JSON still lacks."""
        if self._name is None:
            return "it has no name"
        if self._name not in self._names:
            return f"there is no tool {self._name!r}; tools are: {', '.join(sorted(self._names))}"
        if self._arguments not in self._spans:
            return "it has no arguments"
        # Python reads no integer of several thousand digits.
        return None if is_object(arguments) else UNREADABLE

    def _close(self, char: str) -> bool:
        """Looks for the closing tag: straight behind the object, or anywhere once the call is broken."""
        self._closing += char
        while self._closing and not END_CALL.startswith(self._closing):
            if self._error is None and self._closing.strip(SPACE):
                self._error = f"{self._closing!r} stands between the JSON and {END_CALL}"
            self._closing = self._closing[1:]
        return self._closing == END_CALL

    def _read(self, char: str) -> None:
        """Reads a character of the object and notes where its keys and values begin and end."""
        place, scanner = len(self._body) - 1, self._scanner
        before, depth = scanner.expect, scanner.depth
        scanner.push(char)
        if self._since is None:
            starts = before in (Expect.FIRST_KEY, Expect.KEY, Expect.VALUE) and char not in SPACE
            if depth == 1 and starts and scanner.expect is not Expect.NOTHING:
                self._begin(place, before is Expect.VALUE, char)
        elif depth == 1 and before is Expect.NUMBER:
            if scanner.expect is not Expect.NUMBER:
                self._end_value(place)
        elif scanner.depth == 1 and scanner.expect is Expect.COLON:
            self._end_key(place + 1)
        elif scanner.depth == 1 and scanner.expect is Expect.AFTER:
            self._end_value(place + 1)

    def _begin(self, place: int, is_value: bool, char: str) -> None:
        self._since = place
        if is_value and self._key in _ARGUMENTS:
            if self._begun is not None:
                raise ValueError(f"it has both {' and '.join(_ARGUMENTS)}")
            self._begun, self._arguments = place, self._key
            if char != "{":
                raise ValueError("the arguments are no object")

    def _end_key(self, end: int) -> None:
        self._key = json.loads("".join(self._body[self._since : end]))
        self._since = None
        if self._key in self._spans:
            raise ValueError(f"the key {self._key!r} comes twice")

    def _end_value(self, end: int) -> None:
        assert self._since is not None, "a value that ends has begun"
        self._spans[self._key] = (self._since, end)
        if self._key == "name":
            name = json.loads("".join(self._body[self._since : end]))
            if not isinstance(name, str):
                raise ValueError(f"the name is no string but {name!r}")
            self._name = name
        self._since = None


class BareCallReader:
    """Reads the arguments of a call without tags, and the braces that close it.

    Args:
        index: Which call of the answer it is.
        name: The tool's name.
        braces: How many braces follow the arguments.
    """

    def __init__(self, index: int, name: str, braces: int) -> None:
        self.index = index
        self.name = name
        self._id = new_call_id()
        self._braces = braces
        self._scanner = ObjectScanner()
        self._body: list[str] = []
        self._length: int | None = None
        self._error: str | None = None
        self._sent: int | None = None

    def push(self, char: str) -> bool:
        """Reads a character; True if it ends the call."""
        self._body.append(char)
        if self._error is not None:
            return False
        if self._length is not None:
            self._braces -= char == "}"
            if char not in SPACE and char != "}":
                self._error = f"{char!r} stands between the arguments and the end of the call"
                return False
        else:
            try:
                self._scanner.push(char)
            except ValueError as error:
                self._error = f"the arguments are no JSON: {error}"
                return False
            if self._scanner.expect is Expect.NOTHING:
                self._length = len(self._body)
        return self._length is not None and self._braces == 0

    def flush(self) -> list[CallPiece]:
        """Returns what is new since the last time; nothing once the call is broken."""
        new = "".join(self._body[self._sent or 0 : self._length])
        if self._error is not None or (self._sent is not None and not new):
            return []
        first = self._sent is None
        self._sent = (self._sent or 0) + len(new)
        return [CallPiece(self.index, self._id if first else None, self.name if first else None, new)]

    def end(self, error: str | None = None) -> ToolCall | InvalidToolCall:
        """Returns the call.

        Args:
            error: What ended it, where it is not complete.
        """
        arguments = "".join(self._body[: self._length])
        error = self._error or error or (None if is_object(arguments) else UNREADABLE)
        if error is None:
            return ToolCall(self._id, self.name, arguments)
        return InvalidToolCall(self._id, self.name, "".join(self._body).strip(SPACE), error)
