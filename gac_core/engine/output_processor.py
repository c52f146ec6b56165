"""From the engine's chunks to an answer: reasoning, tool calls and text, and at the end all of it together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate

from gac_core.chat.answer import AnswerParser
from gac_core.chat.pieces import CallPiece, Piece, ReasoningPiece, TextPiece
from gac_core.chat.tools import END_THINK, InvalidToolCall, ToolCall
from gac_core.output import FinishReason, OutputChunk, RequestOutput, ToolCallChunk
from gac_core.token_stats import TokenLogprob, TokenStats

_END_MARK = END_THINK.encode()


class OutputProcessor:
    """Turns one request's chunks, as the engine gives them, into those that callers read.

    The engine's last chunk holds how the request ended; the text, tokens, log-probabilities and statistics of all
    chunks are joined here, once, so that the cost is linear in the length of the answer.

    Args:
        parser: Splits an answer into text, reasoning and tool calls; None where the prompt was a plain string, whose
            continuation is text only.
    """

    def __init__(self, parser: AnswerParser | None) -> None:
        self._parser = parser
        self._text: list[str] = []
        self._reasoning: list[str] = []
        self._tokens: list[bytes] = []
        self._logprobs: list[TokenLogprob] = []
        self._token_stats: list[TokenStats] = []

    @property
    def num_tokens(self) -> int:
        """Union tokens read so far, without the end of text."""
        return len(self._tokens)

    def read(self, chunk: OutputChunk) -> OutputChunk:
        """Returns the chunk with its text split; the last one with the complete output."""
        if self._parser is not None:
            chunk = self._split(self._parser, chunk)
        self._text.append(chunk.text)
        self._reasoning.append(chunk.reasoning)
        self._tokens += chunk.tokens
        self._logprobs += chunk.logprobs or ()
        self._token_stats += chunk.token_stats or ()
        return chunk if chunk.output is None else replace(chunk, output=self._complete(chunk.output))

    @staticmethod
    def _split(parser: AnswerParser, chunk: OutputChunk) -> OutputChunk:
        pieces = parser.push(chunk.text)
        if chunk.output is not None:
            pieces = [*pieces, *parser.finish()]
        return replace(
            chunk,
            text="".join(piece.text for piece in pieces if isinstance(piece, TextPiece)),
            reasoning="".join(piece.text for piece in pieces if isinstance(piece, ReasoningPiece)),
            tool_calls=_calls(pieces),
        )

    def _complete(self, output: RequestOutput) -> RequestOutput:
        """The engine's output with everything that the chunks brought."""
        calls: tuple[ToolCall, ...] = ()
        invalid: tuple[InvalidToolCall, ...] = ()
        reason = output.finish_reason
        if self._parser is not None:
            calls, invalid = self._parser.calls, self._parser.invalid
            if calls and reason is FinishReason.STOP and output.stopped_by is None:
                reason = FinishReason.TOOL_CALLS
        usage = replace(output.usage, reasoning_tokens=self._num_reasoning())
        return replace(
            output,
            usage=usage,
            text="".join(self._text),
            reasoning="".join(self._reasoning),
            tokens=tuple(self._tokens),
            finish_reason=reason,
            logprobs=None if output.logprobs is None else tuple(self._logprobs),
            token_stats=None if output.token_stats is None else tuple(self._token_stats),
            tool_calls=calls,
            invalid_tool_calls=invalid,
        )

    def _num_reasoning(self) -> int:
        """Returns how many tokens the block of reasoning takes, up to the token that completes its end mark."""
        ended = None if self._parser is None else self._parser.reasoning_ended
        if not ended:
            return 0 if ended is None else len(self._tokens)
        end = b"".join(self._tokens).index(_END_MARK) + len(_END_MARK)
        return bisect_left(list(accumulate(map(len, self._tokens))), end) + 1


def _calls(pieces: Sequence[Piece]) -> tuple[ToolCallChunk, ...]:
    return tuple(
        ToolCallChunk(piece.index, piece.id, piece.name, piece.arguments)
        for piece in pieces
        if isinstance(piece, CallPiece)
    )
