"""From the engine's text to an answer in a conversation: what is reasoning, what calls tools, and what is said.

Knows chunks and the parser of answers; knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from gac_core.chat.answer import AnswerParser
from gac_core.chat.pieces import CallPiece, Piece, ReasoningPiece, TextPiece
from gac_core.output import FinishReason, OutputChunk, ToolCallChunk


class OutputProcessor:
    """Turns one request's chunks, as the engine gives them, into those that callers read.

    Args:
        parser: Takes the answer apart; None where the prompt was a plain string, whose continuation stays as it is.
    """

    def __init__(self, parser: AnswerParser | None) -> None:
        self._parser = parser

    def read(self, chunk: OutputChunk) -> OutputChunk:
        """Returns the chunk with its text taken apart."""
        parser = self._parser
        if parser is None:
            return chunk
        pieces = parser.push(chunk.text)
        output = chunk.output
        if output is not None:
            pieces = [*pieces, *parser.finish()]
            called = parser.calls and output.finish_reason is FinishReason.STOP and output.stopped_by is None
            output = replace(
                output,
                finish_reason=FinishReason.TOOL_CALLS if called else output.finish_reason,
                tool_calls=parser.calls,
                invalid_tool_calls=parser.invalid,
            )
        return replace(
            chunk,
            text="".join(piece.text for piece in pieces if isinstance(piece, TextPiece)),
            reasoning="".join(piece.text for piece in pieces if isinstance(piece, ReasoningPiece)),
            tool_calls=_calls(pieces),
            output=output,
        )


def _calls(pieces: Sequence[Piece]) -> tuple[ToolCallChunk, ...]:
    return tuple(
        ToolCallChunk(piece.index, piece.id, piece.name, piece.arguments)
        for piece in pieces
        if isinstance(piece, CallPiece)
    )
