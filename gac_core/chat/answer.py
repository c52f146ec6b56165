"""Splits an answer into reasoning, tool calls and text while it is generated.

Inside a call the JSON is followed, so that a tag within a string does not end the call.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from enum import Enum, auto

from gac_core.chat.callforms import Form, Start, find_end, find_name, find_start
from gac_core.chat.callreader import BareCallReader, CallReader, TaggedCallReader, new_call_id
from gac_core.chat.pieces import InvalidPiece, Piece, ReasoningPiece, TextPiece
from gac_core.chat.tools import CALL, END_THINK, SPACE, THINK, InvalidToolCall, ToolCall

_CUT_OFF = "the text ended inside the call"


class _State(Enum):
    START = auto()
    REASONING = auto()
    FORM = auto()
    TEXT = auto()
    CALL = auto()
    AFTER_CALL = auto()


class AnswerParser:
    """Parses one answer incrementally; the result does not depend on how the text is divided into pushes.

    A call is ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>`` with its keys in any order and white space
    wherever JSON allows it and next to the tags. Other keys are ignored. Reasoning is a block ``<think>...</think>`` at
    the beginning of the answer; an unclosed block extends to the end.

    With ``forms``, an answer that begins with a call of a known tool in one of those forms (`callforms`) consists of
    calls as well. The same text further on is plain text, such as an example.

    White space next to a tag is dropped: at both ends of the reasoning, before a call, and after reasoning or a call up
    to the next call, the end, or the first text. Where calls stand between two texts, the white space after the last
    call is kept, which separates the texts. All other text is unchanged, including tags that are not completed.

    Args:
        tools: Names of the tools that may be called. Default none: ``<tool_call>`` is then plain text.
        inside: Whether the prompt has already opened the reasoning block. Default False.
        forms: The forms of calls without tags to look for. Default none.
        distinct: Whether to drop a call that has the tool and argument values of an earlier one. A call of a tool that
            was called before then streams only once it is complete. Default False.
    """

    def __init__(
        self, tools: Sequence[str] = (), inside: bool = False, forms: tuple[Form, ...] = (), distinct: bool = False
    ) -> None:
        self._names = frozenset(tools)
        self._inside = inside
        self._forms = forms
        self._distinct = distinct
        self._state = _State.START
        # The state at the beginning of an answer and after its reasoning.
        self._first_state = _State.FORM if forms and self._names else _State.TEXT
        # Text that is held back until it is known what it is, and white space that may be dropped.
        self._pending = ""
        self._space: list[str] = []
        self._after_tag = False
        self._reasoned = False
        # Characters read so far. Text that a method is given always ends there, except for those that it names.
        self._read = 0
        self._call: CallReader | None = None
        self._call_begin = 0
        self._call_parts: dict[str, tuple[range, ...]] = {}
        self._form: Form | None = None
        self._num_calls = 0
        # States in which text was emitted: TEXT, REASONING.
        self._emitted: set[_State] = set()
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []
        self._pieces: list[Piece] = []

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The complete calls so far."""
        return tuple(self._calls)

    @property
    def call_parts(self) -> Mapping[str, tuple[range, ...]]:
        """Where the name and the arguments of each complete call stand in the answer, in characters, by its id."""
        return self._call_parts

    @property
    def invalid(self) -> tuple[InvalidToolCall, ...]:
        """The malformed and incomplete calls so far."""
        return tuple(self._invalid)

    @property
    def reasoning_ended(self) -> bool | None:
        """Whether the block of reasoning was closed; None where the answer has none so far."""
        if self._state is _State.REASONING:
            return False
        return True if self._reasoned else None

    def push(self, text: str) -> list[Piece]:
        """Parses the next piece of the answer and returns what is certain by now."""
        self._read += len(text)
        while text:
            if self._state is _State.START:
                text = self._at_start(text)
            elif self._state is _State.REASONING:
                text = self._until(END_THINK, text)
            elif self._state is _State.FORM:
                text = self._in_form(text)
            elif self._state is _State.AFTER_CALL:
                text = self._after_call(text)
            elif self._state is _State.CALL:
                text = self._in_call(text)
            elif self._names:
                text = self._until(CALL, text)
            else:
                self._add_text(text)
                text = ""
        return self._take_pieces()

    def finish(self) -> list[Piece]:
        """Ends the answer and returns what was held back."""
        pending, self._pending = self._pending, ""
        if self._state is _State.START:
            self._state = _State.REASONING if self._inside else _State.TEXT
            self._after_tag = self._inside
            self._add_text(pending)
        elif self._call is not None:
            self._end_call(_CUT_OFF)
        elif self._state in (_State.FORM, _State.AFTER_CALL):
            self._finish_form(pending)
        elif pending:
            self._add_text(pending)
        if self._space and not self._after_tag:
            self._emit("".join(self._space), 0)
        self._space = []
        return self._take_pieces()

    def _finish_form(self, pending: str) -> None:
        """Ends an answer where a call without tags may have begun."""
        name = find_name(pending, self._names, self._forms, self._form)
        begun = pending.lstrip(SPACE + ",;")
        if name is not None or (self._form is not None and begun and not find_end(pending, self._form)):
            self._space = []
            self._add_invalid(self._num_calls, InvalidToolCall(new_call_id(), name, begun.strip(SPACE), _CUT_OFF))
            self._num_calls += 1
        elif self._form is None:
            self._state = _State.TEXT
            self._add_text(pending)

    def _take_pieces(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    # ---- the beginning, and calls without tags

    def _at_start(self, text: str) -> str:
        """Determines whether the answer begins with reasoning; returns the text that is left."""
        text = self._pending + self._skip_space(text)
        if len(text) < len(THINK) and THINK.startswith(text):
            self._pending = text
            return ""
        self._pending = ""
        opened = text.startswith(THINK)
        if opened:
            text = text[len(THINK) :]
            self._space = []
        self._state = _State.REASONING if opened or self._inside else self._first_state
        self._after_tag = self._state is _State.REASONING
        return text

    def _skip_space(self, text: str) -> str:
        """Sets leading white space aside while nothing is pending, so that a long run of it is read once."""
        if self._pending:
            return text
        bare = text.lstrip(SPACE)
        self._space.append(text[: len(text) - len(bare)])
        return bare

    def _in_form(self, text: str) -> str:
        """Determines whether the answer begins with a call without tags; returns the text that is left."""
        text, self._pending = self._pending + self._skip_space(text), ""
        start = find_start(text, self._names, self._forms) if text else True
        if start is True:
            self._pending = text
            return ""
        if start is False:
            self._state = _State.TEXT
            return text
        self._space = []
        self._after_tag = True
        self._form = start.form
        return self._begin_bare(start, text)

    def _after_call(self, text: str) -> str:
        """Looks for the next call in the form of the previous one, or for the end of the form."""
        assert self._form is not None, "this state has a form"
        text, self._pending = self._pending + text, ""
        start, end = find_start(text, self._names, self._forms, self._form), find_end(text, self._form)
        if isinstance(start, Start):
            return self._begin_bare(start, text)
        if start is True or end is True:
            self._pending = text
            return ""
        self._state = _State.TEXT
        return text if end is False else text[end:]

    def _begin_bare(self, start: Start, text: str) -> str:
        rest = text[start.arguments :]
        distance = start.arguments - start.named
        self._begin_call(BareCallReader(self._num_calls, start.name, start.braces, distance), len(rest))
        return rest

    # ---- text and reasoning

    def _until(self, tag: str, text: str) -> str:
        """Adds the text up to a tag and enters the state that the tag begins; returns the text after the tag."""
        text = self._pending + text
        self._pending = ""
        place = text.find(tag)
        if place < 0:
            held = next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
            self._pending = text[len(text) - held :]
            self._add_text(text[: len(text) - held], held)
            return ""
        rest = text[place + len(tag) :]
        self._add_text(text[:place], len(tag) + len(rest))
        self._space = []
        self._after_tag = True
        if tag == END_THINK:
            self._reasoned = True
            self._state = self._first_state
        else:
            self._begin_call(TaggedCallReader(self._num_calls, self._names), len(rest))
        return rest

    def _add_text(self, text: str, after: int = 0) -> None:
        """Emits text or reasoning; white space at its end waits for what follows.

        Args:
            text: The text.
            after: How many of the characters read so far follow it. Default 0.
        """
        bare = text.rstrip(SPACE)
        if not bare:
            self._space.append(text)
            if not self._names and self._state is _State.TEXT and not self._after_tag:
                self._emit("".join(self._space), after)
                self._space = []
            return
        if self._after_tag and self._state not in self._emitted:
            self._space = []
            bare = bare.lstrip(SPACE)
            text = text.lstrip(SPACE)
        waits = self._names or self._state is _State.REASONING
        self._emit("".join(self._space) + (bare if waits else text), after + (len(text) - len(bare) if waits else 0))
        self._space = [text[len(bare) :]] if waits else []
        self._after_tag = False

    def _emit(self, text: str, after: int) -> None:
        if text:
            self._emitted.add(self._state)
            start = self._read - after - len(text)
            self._pieces.append(ReasoningPiece(text) if self._state is _State.REASONING else TextPiece(text, start))

    # ---- calls

    def _begin_call(self, call: CallReader, after: int) -> None:
        """Begins a call whose body, of which so many characters have been read, follows."""
        self._call, self._call_begin = call, self._read - after
        self._num_calls += 1
        self._state = _State.CALL

    def _in_call(self, text: str) -> str:
        call = self._call
        assert call is not None, "this state has a call"
        for place, char in enumerate(text):
            if call.push(char):
                self._end_call(None)
                return text[place + 1 :]
        if not (self._distinct and any(other.name == call.name for other in self._calls)):
            self._pieces += call.flush()
        return ""

    def _end_call(self, error: str | None) -> None:
        call = self._call
        assert call is not None, "this state has a call"
        result = call.end(error)
        self._call = None
        self._state = _State.TEXT if self._form is None else _State.AFTER_CALL
        if isinstance(result, ToolCall) and self._distinct and any(_is_same(result, other) for other in self._calls):
            self._num_calls -= 1
            return
        self._pieces += call.flush()
        if isinstance(result, ToolCall):
            self._calls.append(result)
            begin = self._call_begin
            self._call_parts[result.id] = tuple(range(begin + part.start, begin + part.stop) for part in call.parts)
        else:
            self._add_invalid(call.index, result)

    def _add_invalid(self, index: int, call: InvalidToolCall) -> None:
        self._invalid.append(call)
        self._pieces.append(InvalidPiece(index, call))


def _is_same(one: ToolCall, other: ToolCall) -> bool:
    """Returns whether two calls have the same tool and argument values."""
    # Compared as JSON, because in Python True == 1.
    return one.name == other.name and (
        json.dumps(one.values, sort_keys=True) == json.dumps(other.values, sort_keys=True)
    )
