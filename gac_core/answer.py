"""An answer taken apart while it streams: its reasoning, its calls of tools, and the text that is said.

Follows the text once, in whatever pieces it comes. Inside a call it follows JSON, so that a tag within a string ends
nothing. Knows nothing of models, templates or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

from gac_core.callreader import CallPiece, CallReader
from gac_core.jsontext import SPACE
from gac_core.tools import CALL, InvalidToolCall, ToolCall

__all__ = ["AnswerParser", "CallPiece", "InvalidPiece", "Piece", "ReasoningPiece", "TextPiece"]

THINK, END_THINK = "<think>", "</think>"


@dataclass(frozen=True)
class TextPiece:
    """New text of what is said.

    Attributes:
        text: The text, never empty.
    """

    text: str


@dataclass(frozen=True)
class ReasoningPiece:
    """New text of the reasoning.

    Attributes:
        text: The text, never empty.
    """

    text: str


@dataclass(frozen=True)
class InvalidPiece:
    """The end of a call that is none. Pieces of it with the same index may have gone before.

    Attributes:
        index: Which call of the answer it is, from 0.
        call: What there is of it; the id is that of its pieces.
    """

    index: int
    call: InvalidToolCall


Piece = TextPiece | ReasoningPiece | CallPiece | InvalidPiece


class _State(Enum):
    START = auto()
    REASONING = auto()
    TEXT = auto()
    CALL = auto()


class AnswerParser:
    """Takes one answer apart.

    A call is ``<tool_call>{"name": ..., "arguments": {...}}</tool_call>``, its keys in any order, with white space
    anywhere that JSON allows it and next to the tags. Further keys are passed over. Reasoning is a block
    ``<think>...</think>`` at the answer's beginning; one that is never closed goes to the end.

    White space next to a tag is dropped: at both ends of the reasoning, before a call, and after reasoning or a call up
    to the next call, the end, or the first text. Between two texts with calls in between, what stands after the last
    call is kept, so that they do not grow together. All other text is kept as it is, tags that never become whole too.

    Args:
        tools: Names of the tools that may be called. Without any, ``<tool_call>`` is text like any other.
        thinking: Whether to look for reasoning. Default True.
        inside: Whether the prompt has opened the block of reasoning already. Default False.
    """

    def __init__(self, tools: Sequence[str] = (), thinking: bool = True, inside: bool = False) -> None:
        self._names = frozenset(tools)
        self._inside = inside
        self._state = _State.START if thinking or inside else _State.TEXT
        self._tail = ""
        self._space: list[str] = []
        self._after_tag = False
        self._call: CallReader | None = None
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
            self._end_call("the text ended inside the call")
        elif self._tail:
            self._say(self._tail)
            self._tail = ""
        if self._space and not self._after_tag:
            self._emit("".join(self._space))
        self._space = []
        return self._taken()

    def _taken(self) -> list[Piece]:
        pieces, self._pieces = self._pieces, []
        return pieces

    def _start(self, text: str) -> str:
        """Finds out whether the answer begins with reasoning."""
        if not self._tail:
            # White space is put aside, so that a long run of it is read once.
            bare = text.lstrip(SPACE)
            self._space.append(text[: len(text) - len(bare)])
            text = bare
        held = self._tail + text
        if len(held) < len(THINK) and THINK.startswith(held):
            self._tail = held
            return ""
        self._tail = ""
        opened = held.startswith(THINK)
        if opened:
            held = held[len(THINK) :]
            self._space = []
        self._state = _State.REASONING if opened or self._inside else _State.TEXT
        self._after_tag = self._state is _State.REASONING
        return held

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
            self._state = _State.TEXT
        else:
            self._state = _State.CALL
            self._call = CallReader(self._started, self._names)
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
        self._pieces += self._call.flush()
        return ""

    def _end_call(self, error: str | None) -> None:
        assert self._call is not None, "this state has a call"
        result = self._call.end(error)
        self._pieces += self._call.flush()
        if isinstance(result, ToolCall):
            self._calls.append(result)
        else:
            self._invalid.append(result)
            self._pieces.append(InvalidPiece(self._call.index, result))
        self._call = None
        self._state = _State.TEXT
