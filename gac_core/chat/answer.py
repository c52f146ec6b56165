"""An answer taken apart while it streams: its reasoning, its calls of tools, and the text that is said.

Follows the text once, in whatever pieces it comes. Inside a call it follows JSON, so that a tag within a string ends
nothing. Knows nothing of models, templates or requests.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from enum import Enum, auto

from gac_core.chat.callforms import Form, Start, find_end, find_name, find_start
from gac_core.chat.callreader import BareCallReader, TaggedCallReader, new_call_id
from gac_core.chat.jsontext import SPACE
from gac_core.chat.pieces import CallPiece, InvalidPiece, Piece, ReasoningPiece, TextPiece
from gac_core.chat.tools import CALL, InvalidToolCall, ToolCall

__all__ = ["AnswerParser", "CallPiece", "InvalidPiece", "Piece", "ReasoningPiece", "TextPiece"]

THINK, END_THINK = "<think>", "</think>"


class _State(Enum):
    START = auto()
    REASONING = auto()
    FORM = auto()
    TEXT = auto()
    CALL = auto()
    AFTER_CALL = auto()


_CUT_OFF = "the text ended inside the call"


class AnswerParser:
    """Takes one answer apart.

    A call is ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, its keys in any order, with white space
    anywhere that JSON allows it and next to the tags. Further keys are passed over. Reasoning is a block
    ``<think>...</think>`` at the answer's beginning; one that is never closed goes to the end.

    With ``forms``, an answer that begins with a call of a known tool in one of the other forms that models write
    (`callforms`) consists of calls as well. The same further on in a text is text: an example, not a call.

    White space next to a tag is dropped: at both ends of the reasoning, before a call, and after reasoning or a call up
    to the next call, the end, or the first text. Between two texts with calls in between, what stands after the last
    call is kept, so that they do not grow together. All other text is kept as it is, tags that never become whole too.

    Args:
        tools: Names of the tools that may be called. Without any, ``<tool_call>`` is text like any other.
        thinking: Whether to look for reasoning. Default True.
        inside: Whether the prompt has opened the block of reasoning already. Default False.
        forms: The forms of calls without tags to look for. Default none.
        distinct: Whether a call is dropped whose tool and argument values are those of an earlier one. Pieces of a call
            are then held back while it may be such a repetition: to its end, if an earlier call has the same name.
            Default False.
    """

    def __init__(
        self,
        tools: Sequence[str] = (),
        thinking: bool = True,
        inside: bool = False,
        forms: tuple[Form, ...] = (),
        distinct: bool = False,
    ) -> None:
        self._names = frozenset(tools)
        self._inside = inside
        # How text starts that is not reasoning.
        self._forms = forms
        self._said = _State.FORM if forms and self._names else _State.TEXT
        self._distinct = distinct
        self._state = _State.START if thinking or inside else self._said
        self._tail = ""
        self._space: list[str] = []
        self._after_tag = False
        self._call: TaggedCallReader | BareCallReader | None = None
        self._form: Form | None = None
        self._started = 0
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._calls: list[ToolCall] = []
        self._invalid: list[InvalidToolCall] = []
        self._pieces: list[Piece] = []

    @property
    def text(self) -> str:
        """What has been said so far, without reasoning and calls."""
        return "".join(self._text)

    @property
    def reasoning(self) -> str:
        """The reasoning so far."""
        return "".join(self._reasoning)

    @property
    def calls(self) -> tuple[ToolCall, ...]:
        """The calls that are complete."""
        return tuple(self._calls)

    @property
    def invalid(self) -> tuple[InvalidToolCall, ...]:
        """What began as a call and is none."""
        return tuple(self._invalid)

    def push(self, text: str) -> list[Piece]:
        """Reads the answer's next piece of text and returns what is known of it by now."""
        while text:
            if self._state is _State.START:
                text = self._start(text)
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
                self._say(text)
                text = ""
        return self._taken()

    def finish(self) -> list[Piece]:
        """Ends the answer and returns what was held back."""
        if self._state is _State.START:
            held, self._tail = self._tail, ""
            self._state = _State.REASONING if self._inside else _State.TEXT
            self._after_tag = self._inside
            self._say(held)
        elif self._call is not None:
            self._end_call(_CUT_OFF)
        elif self._state in (_State.FORM, _State.AFTER_CALL):
            self._finish_form()
        elif self._tail:
            self._say(self._tail)
            self._tail = ""
        if self._space and not self._after_tag:
            self._emit("".join(self._space))
        self._space = []
        return self._taken()

    def _finish_form(self) -> None:
        """Ends an answer where a call without tags may have begun."""
        name = find_name(self._tail, self._names, self._forms, self._form)
        begun = self._tail.lstrip(SPACE + ",;")
        if name is not None or (self._form is not None and begun and not find_end(self._tail, self._form)):
            self._space = []
            self._break_off(name, begun)
        elif self._form is None:
            self._state = _State.TEXT
            self._say(self._tail)
        self._tail = ""

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _start(self, text: str) -> str:
        """Finds out whether the answer begins with reasoning."""
        held = self._tail + self._past_space(text)
        if len(held) < len(THINK) and THINK.startswith(held):
            self._tail = held
            return ""
        self._tail = ""
        opened = held.startswith(THINK)
        if opened:
            held = held[len(THINK) :]
            self._space = []
        self._state = _State.REASONING if opened or self._inside else self._said
        self._after_tag = self._state is _State.REASONING
        return held

    def _past_space(self, text: str) -> str:
        """Puts white space aside where nothing is held yet, so that a long run of it is read once."""
        if self._tail:
            return text
        bare = text.lstrip(SPACE)
        self._space.append(text[: len(text) - len(bare)])
        return bare

    def _in_form(self, text: str) -> str:
        """Finds out whether the answer begins with a call without tags."""
        held, self._tail = self._tail + self._past_space(text), ""
        start = find_start(held, self._names, self._forms) if held else True
        if start is True:
            self._tail = held
            return ""
        if start is False:
            self._state = _State.TEXT
            return held
        self._space = []
        self._after_tag = True
        self._form = start.form
        return self._begin_bare(start, held)

    def _after_call(self, text: str) -> str:
        """Looks for the next call in the form of the one before, or for the end of the form."""
        assert self._form is not None, "this state has a form"
        held, self._tail = self._tail + text, ""
        start, end = find_start(held, self._names, self._forms, self._form), find_end(held, self._form)
        if isinstance(start, Start):
            return self._begin_bare(start, held)
        if start is True or end is True:
            self._tail = held
            return ""
        self._state = _State.TEXT
        return held if end is False else held[end:]

    def _begin_bare(self, start: Start, held: str) -> str:
        self._call = BareCallReader(self._started, start.name, start.braces)
        self._started += 1
        self._state = _State.CALL
        return held[start.arguments :]

    def _until(self, tag: str, text: str) -> str:
        """Says everything up to a tag; returns what stands behind it, and goes over to that."""
        text = self._tail + text
        self._tail = ""
        place = text.find(tag)
        if place < 0:
            held = next((n for n in range(min(len(tag) - 1, len(text)), 0, -1) if tag.startswith(text[-n:])), 0)
            self._tail = text[len(text) - held :]
            self._say(text[: len(text) - held])
            return ""
        self._say(text[:place])
        self._space = []
        self._after_tag = True
        if tag == END_THINK:
            self._state = self._said
        else:
            self._state = _State.CALL
            self._call = TaggedCallReader(self._started, self._names)
            self._started += 1
        return text[place + len(tag) :]

    def _say(self, text: str) -> None:
        """Gives out text or reasoning; white space at its end waits for what follows."""
        bare = text.rstrip(SPACE)
        if not bare:
            self._space.append(text)
            if not self._names and self._state is _State.TEXT and not self._after_tag:
                self._emit("".join(self._space))
                self._space = []
            return
        so_far = self._reasoning if self._state is _State.REASONING else self._text
        if self._after_tag and not so_far:
            self._space = []
            bare = bare.lstrip(SPACE)
            text = text.lstrip(SPACE)
        keeps = self._names or self._state is _State.REASONING
        self._emit("".join(self._space) + (bare if keeps else text))
        self._space = [text[len(bare) :]] if keeps else []
        self._after_tag = False

    def _emit(self, text: str) -> None:
        if not text:
            return
        if self._state is _State.REASONING:
            self._reasoning.append(text)
            self._pieces.append(ReasoningPiece(text))
        else:
            self._text.append(text)
            self._pieces.append(TextPiece(text))

    def _in_call(self, text: str) -> str:
        assert self._call is not None, "this state has a call"
        for place, char in enumerate(text):
            if self._call.push(char):
                self._end_call(None)
                return text[place + 1 :]
        if not self._may_repeat(self._call.name):
            self._pieces += self._call.flush()
        return ""

    def _may_repeat(self, name: str | None) -> bool:
        return self._distinct and any(call.name == name for call in self._calls)

    def _end_call(self, error: str | None) -> None:
        call = self._call
        assert call is not None, "this state has a call"
        result = call.end(error)
        self._call = None
        self._state = _State.TEXT if self._form is None else _State.AFTER_CALL
        if isinstance(result, ToolCall) and self._distinct and any(_same(result, other) for other in self._calls):
            self._started -= 1
            return
        self._pieces += call.flush()
        if isinstance(result, ToolCall):
            self._calls.append(result)
        else:
            self._add_invalid(call.index, result)

    def _break_off(self, name: str | None, text: str) -> None:
        """Reports a call that ended before its arguments."""
        self._add_invalid(self._started, InvalidToolCall(new_call_id(), name, text.strip(SPACE), _CUT_OFF))
        self._started += 1

    def _add_invalid(self, index: int, call: InvalidToolCall) -> None:
        self._invalid.append(call)
        self._pieces.append(InvalidPiece(index, call))


def _same(one: ToolCall, other: ToolCall) -> bool:
    """Whether two calls have the same tool and the same argument values."""
    # As JSON, since Python takes True for 1.
    return one.name == other.name and (
        json.dumps(one.values, sort_keys=True) == json.dumps(other.values, sort_keys=True)
    )
