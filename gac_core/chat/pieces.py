"""What an answer is taken apart into: pieces of text, reasoning and tool calls."""

from __future__ import annotations

from dataclasses import dataclass

from gac_core.chat.tools import InvalidToolCall


@dataclass(frozen=True)
class CallPiece:
    """A piece of a call.

    Attributes:
        index: Which call of the answer it belongs to, from 0; calls that turn out invalid count.
        id: The call's id, on its first piece; else None.
        name: The tool's name, on the first piece; else None.
        arguments: New text of the arguments' JSON, exactly as written; may be empty on the first piece.
    """

    index: int
    id: str | None
    name: str | None
    arguments: str


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
    """The end of a malformed call. Pieces of it with the same index may have gone before.

    Attributes:
        index: Which call of the answer it is, from 0.
        call: What there is of it; the id is that of its pieces.
    """

    index: int
    call: InvalidToolCall


Piece = TextPiece | ReasoningPiece | CallPiece | InvalidPiece
