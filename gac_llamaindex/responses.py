"""Outputs of the ensemble as LlamaIndex's responses.

LlamaIndex's streams are cumulative: every response holds the text so far, and the new part as ``delta``.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator, Sequence
from dataclasses import asdict
from typing import Any, TypeVar

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    CompletionResponse,
    LogProb,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)
from llama_index.core.llms.llm import ToolSelection
from pydantic_core import from_json

from gac_core import (
    InvalidToolCall,
    OutputChunk,
    RequestOutput,
    TokenLogprob,
    ToolCallChunk,
    as_metadata,
    check_tool_calls,
    token_counts,
)
from gac_core import as_logprobs as openai_logprobs

ResponseT = TypeVar("ResponseT", ChatResponse, CompletionResponse)


def chat_response(output: RequestOutput) -> ChatResponse:
    """Returns the response of a finished conversation."""
    return ChatResponse(message=_final(output), raw=as_raw(output), logprobs=as_logprobs(output.logprobs))


def completion_response(output: RequestOutput) -> CompletionResponse:
    """Returns the response of a finished completion."""
    return CompletionResponse(
        text=output.text,
        raw=as_raw(output),
        logprobs=as_logprobs(output.logprobs),
        additional_kwargs={"thinking": output.reasoning} if output.reasoning else {},
    )


class ChatReader:
    """Makes the responses of one stream."""

    def __init__(self) -> None:
        self._text = ""
        self._reasoning = ""
        self._calls: list[ToolCallBlock] = []

    def read(self, chunk: OutputChunk) -> ChatResponse:
        """Returns the response for one chunk. The arguments of tool calls are text until the last response."""
        self._text += chunk.text
        self._reasoning += chunk.reasoning
        for piece in chunk.tool_calls:
            self._grow(piece)
        output = chunk.output
        return ChatResponse(
            message=_message(self._text, self._reasoning, self._calls) if output is None else _final(output),
            delta=chunk.text,
            raw=chunk_raw(chunk),
            logprobs=as_logprobs(chunk.logprobs),
            additional_kwargs={"thinking_delta": chunk.reasoning} if chunk.reasoning else {},
        )

    def _grow(self, piece: ToolCallChunk) -> None:
        if piece.index >= len(self._calls):
            self._calls.append(
                ToolCallBlock(tool_call_id=piece.id, tool_name=piece.name or "", tool_kwargs=piece.arguments)
            )
            return
        # A new block: earlier responses hold the old one.
        block = self._calls[piece.index]
        self._calls[piece.index] = block.model_copy(update={"tool_kwargs": f"{block.tool_kwargs}{piece.arguments}"})


class CompletionReader:
    """Makes the responses of one stream of a completion."""

    def __init__(self) -> None:
        self._text = ""

    def read(self, chunk: OutputChunk) -> CompletionResponse:
        """Returns the response for one chunk."""
        self._text += chunk.text
        output = chunk.output
        extra = {"thinking_delta": chunk.reasoning} if chunk.reasoning else {}
        if output is not None and output.reasoning:
            extra["thinking"] = output.reasoning
        return CompletionResponse(
            text=self._text,
            delta=chunk.text,
            raw=chunk_raw(chunk),
            logprobs=as_logprobs(chunk.logprobs),
            additional_kwargs=extra,
        )


def read_stream(
    read: Callable[[OutputChunk], ResponseT], chunks: Iterator[OutputChunk]
) -> Generator[ResponseT, None, None]:
    """Yields a response for each chunk of a stream that has something to show.

    Args:
        read: `ChatReader.read` or `CompletionReader.read`; reads every chunk.
        chunks: The stream.
    """
    for chunk in chunks:
        response = read(chunk)
        if not chunk.is_silent:
            yield response


async def aread_stream(
    read: Callable[[OutputChunk], ResponseT], chunks: AsyncIterator[OutputChunk]
) -> AsyncGenerator[ResponseT, None]:
    """`read_stream` for event loops."""
    async for chunk in chunks:
        response = read(chunk)
        if not chunk.is_silent:
            yield response


def as_raw(output: RequestOutput) -> dict[str, Any]:
    """Returns ``usage``, which LlamaIndex's token counters read, and metadata as in `gac_core.as_metadata`."""
    counts = token_counts(output)
    usage = {
        "prompt_tokens": counts.prompt,
        "completion_tokens": counts.completion,
        "total_tokens": counts.total,
        "prompt_tokens_details": {"cached_tokens": counts.cached},
        "completion_tokens_details": {"reasoning_tokens": counts.reasoning},
    }
    return {**as_metadata(output), "usage": usage}


def chunk_raw(chunk: OutputChunk) -> dict[str, Any] | None:
    """Returns `as_raw` of the last chunk of a stream; of others the log-probabilities of their tokens, if requested."""
    if chunk.output is not None:
        return as_raw(chunk.output)
    return {"logprobs": openai_logprobs(chunk.logprobs)} if chunk.logprobs else None


def is_last(response: ChatResponse | CompletionResponse) -> bool:
    """Returns whether a response is the whole answer: not one of a stream, or its last."""
    return response.raw is not None and "finish_reason" in response.raw


def as_logprobs(entries: Sequence[TokenLogprob] | None) -> list[list[LogProb]] | None:
    """Returns one list per token: the chosen token, then the most probable others; None unless requested."""
    if entries is None:
        return None
    return [
        [
            _logprob(entry.token, entry.logprob),
            *(_logprob(token, value) for token, value in entry.top if token != entry.token),
        ]
        for entry in entries
    ]


def _logprob(token: bytes, value: float) -> LogProb:
    return LogProb(token=token.decode(errors="replace"), logprob=value, bytes=list(token))


def _final(output: RequestOutput) -> ChatMessage:
    """Returns the message of a finished answer; malformed calls are in ``additional_kwargs``."""
    calls = [
        ToolCallBlock(tool_call_id=call.id, tool_name=call.name, tool_kwargs=call.values) for call in output.tool_calls
    ]
    message = _message(output.text, output.reasoning, calls)
    if output.invalid_tool_calls:
        message.additional_kwargs["invalid_tool_calls"] = [asdict(call) for call in output.invalid_tool_calls]
    return message


def _message(text: str, reasoning: str, calls: Sequence[ToolCallBlock]) -> ChatMessage:
    blocks: list[Any] = [ThinkingBlock(content=reasoning)] if reasoning else []
    blocks += [TextBlock(text=text)] if text or not calls else []
    # LlamaIndex's programs read calls from additional_kwargs, its agents' memory from blocks.
    extra = {"tool_calls": [_openai(block) for block in calls]} if calls else {}
    return ChatMessage(role=MessageRole.ASSISTANT, blocks=[*blocks, *calls], additional_kwargs=extra)


def _openai(block: ToolCallBlock) -> dict[str, Any]:
    arguments = block.tool_kwargs if isinstance(block.tool_kwargs, str) else json.dumps(block.tool_kwargs)
    return {
        "id": block.tool_call_id,
        "type": "function",
        "function": {"name": block.tool_name, "arguments": arguments},
    }


def tool_selections(response: ChatResponse, error_on_no_tool_call: bool) -> list[ToolSelection]:
    """Returns the tool calls of a response; while it streams, with the arguments so far.

    Args:
        response: The response.
        error_on_no_tool_call: Whether an answer without calls is an error.

    Raises:
        AnswerError: There is no call and one was required, or all calls are malformed.
    """
    check_calls(response, error_on_no_tool_call)
    return [
        ToolSelection(
            tool_id=block.tool_call_id or f"call_{place}", tool_name=block.tool_name, tool_kwargs=_values(block)
        )
        for place, block in enumerate(_call_blocks(response))
    ]


def check_calls(response: ChatResponse, required: bool = False) -> None:
    """Checks that a response whose calls are all malformed does not pass for one without any.

    Args:
        response: The response.
        required: Whether an answer without calls is an error. Default False.

    Raises:
        AnswerError: All calls are malformed, or there is none where one is required.
    """
    message = response.message
    invalid = [InvalidToolCall(**call) for call in message.additional_kwargs.get("invalid_tool_calls") or ()]
    reason = (response.raw or {}).get("finish_reason")
    check_tool_calls(
        _call_blocks(response), invalid, text=message.content or "", finish_reason=reason, required=required
    )


def _call_blocks(response: ChatResponse) -> list[ToolCallBlock]:
    return [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]


def _values(block: ToolCallBlock) -> dict[str, Any]:
    if not isinstance(block.tool_kwargs, str):
        return block.tool_kwargs
    values = partial_json(block.tool_kwargs)
    return values if isinstance(values, dict) else {}


def partial_json(text: str) -> Any:
    """Returns the value of incomplete JSON, with strings that have not ended; None where it has not begun."""
    try:
        return from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return None
