"""From the engine's chunks to an answer: reasoning, tool calls and text, and at the end all of it together."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import TYPE_CHECKING

from gac_core.attribution import TextToken, VoiceWeight, attribute, document_shares, measure_doubt
from gac_core.chat.answer import AnswerParser
from gac_core.chat.pieces import CallPiece, Piece, ReasoningPiece, TextPiece
from gac_core.chat.tools import END_THINK, InvalidToolCall, ToolCall
from gac_core.doubt import AbsenceCalibration, Doubt
from gac_core.output import FinishReason, OutputChunk, RequestOutput, ToolCallChunk
from gac_core.token_stats import TokenLogprob, TokenStats
from gac_core.tokenization.offsets import KeptText, character_ranges

if TYPE_CHECKING:
    from gac_core.decoding.sequence import Sequence as Voice

_END_MARK = END_THINK.encode()


class OutputProcessor:
    """Turns one request's chunks, as the engine gives them, into those that callers read.

    The engine's last chunk holds how the request ended; the text, tokens, log-probabilities and statistics of all
    chunks are joined here, once, so that the cost is linear in the length of the answer.

    Args:
        parser: Splits an answer into text, reasoning and tool calls; None where the prompt was a plain string, whose
            continuation is text only.
        token_stats: Whether the caller asked for statistics of tokens; the engine's chunks have them in any case.
            Default False.
        voices: The request's voices, whose weights are read at its end. Default: none that reads a document.
        absence: Predicts whether documents contain the answer. Default: none.
    """

    def __init__(
        self,
        parser: AnswerParser | None,
        token_stats: bool = False,
        voices: Sequence[Voice] = (),
        absence: AbsenceCalibration | None = None,
    ) -> None:
        self._parser = parser
        self._shows_stats = token_stats
        self._voices = voices
        self._absence = absence
        # Which characters of the answer are its text; the others are reasoning, tool calls, tags and space.
        self._kept = KeptText()
        self._num_characters = 0
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
        else:
            self._kept.add(self._num_characters, self._num_characters + len(chunk.text))
            self._num_characters += len(chunk.text)
        self._text.append(chunk.text)
        self._reasoning.append(chunk.reasoning)
        self._tokens += chunk.tokens
        self._logprobs += chunk.logprobs or ()
        self._token_stats += chunk.token_stats or ()
        if not self._shows_stats:
            chunk = replace(chunk, token_stats=None)
        return chunk if chunk.output is None else replace(chunk, output=self._complete(chunk.output))

    def _split(self, parser: AnswerParser, chunk: OutputChunk) -> OutputChunk:
        pieces = parser.push(chunk.text)
        if chunk.output is not None:
            pieces = [*pieces, *parser.finish()]
        written = [piece for piece in pieces if isinstance(piece, TextPiece)]
        for piece in written:
            self._kept.add(piece.start, piece.start + len(piece.text))
        return replace(
            chunk,
            text="".join(piece.text for piece in written),
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
        text = "".join(self._text)
        return replace(
            self._attributed(output, text),
            usage=replace(output.usage, reasoning_tokens=self._num_reasoning()),
            text=text,
            reasoning="".join(self._reasoning),
            tokens=tuple(self._tokens),
            finish_reason=reason,
            logprobs=None if output.logprobs is None else tuple(self._logprobs),
            token_stats=tuple(self._token_stats) if self._shows_stats else None,
            tool_calls=calls,
            invalid_tool_calls=invalid,
        )

    def _attributed(self, output: RequestOutput, text: str) -> RequestOutput:
        """Returns an output with the documents that carried its text, and how sure it is."""
        weights = [
            VoiceWeight(voice.document, voice.name, voice.weight)
            for voice in self._voices
            if voice.document is not None
        ]
        places = character_ranges(stats.token for stats in self._token_stats)
        pairs = zip(places, self._token_stats, strict=True)
        tokens = [TextToken(self._kept.place(place), stats) for place, stats in pairs]
        found = attribute(text, tokens, weights, self._absence)
        return replace(
            output,
            citations=found.citations,
            document_shares=found.document_shares,
            doubt=found.doubt,
            call_doubts=self._call_doubts(places, weights),
        )

    def _call_doubts(self, places: Sequence[range], weights: Sequence[VoiceWeight]) -> dict[str, Doubt]:
        """Returns how sure name and arguments of each tool call are, by its id.

        Args:
            places: The characters of the answer that each token writes.
            weights: The voices that read a document.
        """
        doubts = {}
        for call, parts in ({} if self._parser is None else self._parser.call_parts).items():
            own = [
                stats
                for place, stats in zip(places, self._token_stats, strict=True)
                if any(max(place.start, part.start) < min(place.stop, part.stop) for part in parts)
            ]
            doubt = measure_doubt(own, weights, document_shares(own, weights))
            if doubt is not None:
                doubts[call] = doubt
        return doubts

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
