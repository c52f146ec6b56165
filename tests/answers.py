"""Answers parsed in given pieces."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from gac_core import InvalidToolCall, ToolCall
from gac_core.chat.answer import AnswerParser
from gac_core.chat.pieces import Piece, ReasoningPiece, TextPiece


@dataclass(frozen=True)
class ParsedAnswer:
    """What a parser returned for one answer.

    Attributes:
        pieces: All pieces in order.
        calls: The valid calls.
        invalid: The others.
    """

    pieces: list[Piece]
    calls: tuple[ToolCall, ...]
    invalid: tuple[InvalidToolCall, ...]

    @property
    def text(self) -> str:
        """The text without reasoning and calls."""
        return "".join(piece.text for piece in self.pieces if isinstance(piece, TextPiece))

    @property
    def reasoning(self) -> str:
        """The reasoning."""
        return "".join(piece.text for piece in self.pieces if isinstance(piece, ReasoningPiece))


def parsed(parser: AnswerParser, texts: Iterable[str]) -> ParsedAnswer:
    """Pushes texts into a parser and finishes it."""
    pieces = [piece for text in texts for piece in parser.push(text)] + parser.finish()
    return ParsedAnswer(pieces, parser.calls, parser.invalid)
