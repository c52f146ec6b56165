"""The ensemble's answers turned into LangChain's messages and chunks.

Knows values only; knows nothing of ensembles or of how models are called.
"""

from __future__ import annotations

from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk

from gac_core import OutputChunk, RequestOutput, as_metadata, fold

PROVIDER = "gac"


def metadata(output: RequestOutput, model: str) -> dict[str, Any]:
    """Returns an answer's `response_metadata`."""
    return {**as_metadata(output), "model_name": model, "model_provider": PROVIDER}


def usage(output: RequestOutput) -> UsageMetadata:
    """Returns an answer's token counts."""
    counts = output.usage
    reused = min((member.reused_tokens for member in output.stats.members.values()), default=0)
    return UsageMetadata(
        input_tokens=counts.prompt_tokens,
        output_tokens=counts.completion_tokens,
        total_tokens=counts.total_tokens,
        input_token_details={"cache_read": min(reused, counts.prompt_tokens)},
    )


def _kwargs(reasoning: str) -> dict[str, Any]:
    return {"reasoning_content": reasoning} if reasoning else {}


def to_message(output: RequestOutput, model: str) -> AIMessage:
    """Turns an answer into a message."""
    return AIMessage(
        content=output.text,
        additional_kwargs=_kwargs(output.reasoning),
        tool_calls=[
            LangChainToolCall(name=c.name, args=c.values, id=c.id, type="tool_call") for c in output.tool_calls
        ],
        invalid_tool_calls=[
            InvalidToolCall(type="invalid_tool_call", id=c.id, name=c.name, args=c.arguments, error=c.error)
            for c in output.invalid_tool_calls
        ],
        usage_metadata=usage(output),
        response_metadata=metadata(output, model),
    )


def to_chunk(part: OutputChunk, output: RequestOutput | None, model: str, told: set[str]) -> AIMessageChunk:
    """Turns a piece of a stream into a chunk.

    Args:
        part: The piece.
        output: On the last piece the whole answer.
        model: The model's name.
        told: Ids of calls that went before; those of this piece are added.
    """
    calls = [
        tool_call_chunk(name=piece.name, args=piece.arguments, id=piece.id, index=piece.index)
        for piece in part.tool_calls
    ]
    told.update(piece.id for piece in part.tool_calls if piece.id is not None)
    if output is None:
        return AIMessageChunk(content=part.text, additional_kwargs=_kwargs(part.reasoning), tool_call_chunks=calls)
    # Calls that broke before their name was known were not told yet; LangChain finds them invalid by itself.
    late = [call for call in output.invalid_tool_calls if call.id not in told]
    count = len(output.tool_calls) + len(output.invalid_tool_calls)
    calls += [
        tool_call_chunk(name=call.name, args=call.arguments, id=call.id, index=count + n) for n, call in enumerate(late)
    ]
    return AIMessageChunk(
        content=part.text,
        additional_kwargs=_kwargs(part.reasoning),
        tool_call_chunks=calls,
        usage_metadata=usage(output),
        response_metadata=metadata(output, model),
        chunk_position="last",
    )


class ChunkReader:
    """Turns the pieces of one stream into chunks.

    Args:
        model: The model's name.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        self._parts: list[OutputChunk] = []
        self._told: set[str] = set()

    def __call__(self, part: OutputChunk) -> ChatGenerationChunk | None:
        """Returns the next piece as a chunk; None where there is nothing in it to show."""
        self._parts.append(part)
        if part.is_silent:
            return None
        output = None if part.output is None else fold(self._parts)
        return ChatGenerationChunk(message=to_chunk(part, output, self._model, self._told))
