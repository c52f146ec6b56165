"""From the ensemble's answers to LlamaIndex's responses.

Streams are cumulative, as LlamaIndex has them: every response holds all of the text so far, and what is new as
``delta``. Knows no ensemble.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

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

from gac_core import AnswerError, OutputChunk, RequestOutput, TokenLogprob, ToolCallChunk, as_metadata


def chat_response(output: RequestOutput) -> ChatResponse:
    """Returns a finished answer of a conversation."""
    return ChatResponse(message=_final(output), raw=as_raw(output), logprobs=as_logprobs(output.logprobs))


def completion_response(output: RequestOutput) -> CompletionResponse:
    """Returns a finished completion."""
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
        """Returns the response to one chunk. Tool calls grow until the last response, which holds them whole."""
        self._text += chunk.text
        self._reasoning += chunk.reasoning
        for piece in chunk.tool_calls:
            self._grow(piece)
        output = chunk.output
        return ChatResponse(
            message=_message(self._text, self._reasoning, self._calls) if output is None else _final(output),
            delta=chunk.text,
            raw=None if output is None else as_raw(output),
            logprobs=as_logprobs(chunk.logprobs),
            additional_kwargs={"thinking_delta": chunk.reasoning} if chunk.reasoning else {},
        )

    def _grow(self, piece: ToolCallChunk) -> None:
        if piece.index >= len(self._calls):
            self._calls.append(
                ToolCallBlock(tool_call_id=piece.id, tool_name=piece.name or "", tool_kwargs=piece.arguments)
            )
            return
        # A block of its own, since the one before is in responses that were given away.
        block = self._calls[piece.index]
        self._calls[piece.index] = block.model_copy(update={"tool_kwargs": f"{block.tool_kwargs}{piece.arguments}"})


class CompletionReader:
    """Makes the responses of one stream of a continued text."""

    def __init__(self) -> None:
        self._text = ""

    def read(self, chunk: OutputChunk) -> CompletionResponse:
        """Returns the response to one chunk."""
        self._text += chunk.text
        output = chunk.output
        extra = {"thinking_delta": chunk.reasoning} if chunk.reasoning else {}
        if output is not None and output.reasoning:
            extra["thinking"] = output.reasoning
        return CompletionResponse(
            text=self._text,
            delta=chunk.text,
            raw=None if output is None else as_raw(output),
            logprobs=as_logprobs(chunk.logprobs),
            additional_kwargs=extra,
        )


def as_raw(output: RequestOutput) -> dict[str, Any]:
    """Returns token counts, where LlamaIndex looks for them, and under ``gac`` the settings in force and statistics."""
    usage = output.usage
    counts = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    return {**as_metadata(output), "usage": counts}


def as_logprobs(entries: Sequence[TokenLogprob] | None) -> list[list[LogProb]] | None:
    """Returns one list a token: the chosen one, then the most probable others; None where none were asked for."""
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
    """The message of a finished answer, with its calls as they are, and with what is no call beside it."""
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
    # LlamaIndex's programs look for calls in additional_kwargs, its agents' memory in blocks.
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
    """Returns the tool calls of a response; of one that still streams with their arguments as far as they are written.

    Args:
        response: The response.
        error_on_no_tool_call: Whether an answer without calls is an error.

    Raises:
        AnswerError: There is no call and one was needed, or there are only calls that were cut short.
    """
    blocks = [block for block in response.message.blocks if isinstance(block, ToolCallBlock)]
    check_calls(response)
    if not blocks and error_on_no_tool_call:
        text = response.message.content or ""
        raise AnswerError(f"the models called no tool and answered {text!r}; set tool_required=True to have one", text)
    return [
        ToolSelection(
            tool_id=block.tool_call_id or f"call_{place}", tool_name=block.tool_name, tool_kwargs=_values(block)
        )
        for place, block in enumerate(blocks)
    ]


def check_calls(response: ChatResponse) -> None:
    """Refuses an answer whose calls are all broken, which would else pass for an answer without any.

    Raises:
        AnswerError: Calls were begun, and none is one.
    """
    broken = response.message.additional_kwargs.get("invalid_tool_calls")
    if broken and not response.message.additional_kwargs.get("tool_calls"):
        first = broken[0]
        called = "a tool" if first["name"] is None else f"tool {first['name']!r}"
        raise AnswerError(
            f"the call of {called} is no valid call: {first['error']}; it has {first['arguments']!r}; "
            "if it was cut short, raise max_tokens",
            first["arguments"],
        )


def _values(block: ToolCallBlock) -> dict[str, Any]:
    if not isinstance(block.tool_kwargs, str):
        return block.tool_kwargs
    values = partial_json(block.tool_kwargs)
    return values if isinstance(values, dict) else {}


def partial_json(text: str) -> Any:
    """Returns what JSON says so far, strings that are still growing included; None where it has not begun."""
    try:
        return from_json(text, allow_partial="trailing-strings")
    except ValueError:
        return None
