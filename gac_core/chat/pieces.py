"""The pieces of a parsed answer: text, reasoning and tool calls."""

from __future__ import annotations

from dataclasses import dataclass, field

from gac_core.chat.tools import InvalidToolCall


@dataclass(frozen=True)
class CallPiece:
    """A piece of a tool call.

    Attributes:
        index: Index of the call in the answer, from 0; invalid calls count.
        id: The call's id on its first piece; else None.
        name: The tool's name on the call's first piece; else None.
        arguments: New text of the arguments' JSON, exactly as generated; may be empty on the first piece.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


@dataclass(frozen=True)
class TextPiece:
    """New text of the answer.

    Attributes:
        text: The text, never empty; it stands in the answer without a gap.
        start: The character of the answer, with its reasoning, calls and tags, at which it begins. Default 0.
    """

    text: str
    start: int = field(default=0, compare=False)


@dataclass(frozen=True)
class ReasoningPiece:
    """New text of the reasoning.

    Attributes:
        text: The text, never empty.
    """

    text: str


@dataclass(frozen=True)
class InvalidPiece:
    """Marks the end of a malformed tool call, after any pieces of it with the same index.

    Attributes:
        index: Index of the call in the answer, from 0.
        call: The malformed call; its id is that of its pieces.
    """

    index: int
    call: InvalidToolCall


Piece = TextPiece | ReasoningPiece | CallPiece | InvalidPiece
