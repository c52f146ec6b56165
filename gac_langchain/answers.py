"""The ensemble's answers turned into LangChain's messages and chunks.

Knows values only; knows nothing of ensembles or of how models are called.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.outputs import ChatGenerationChunk
from langchain_core.utils.json import parse_partial_json

from gac_core import OutputChunk, RequestOutput, as_metadata

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


def beyond_repair(arguments: str) -> str:
    """Returns what must follow the arguments of a broken call so that LangChain takes it for one.

    A sum of chunks closes brackets and quotes that are open, and an agent would run the tool with half of its
    arguments; what it never mends is a bracket that closes another than was opened last.

    Args:
        arguments: JSON as far as it was written, in any state; may be empty.
    """
    ends = (end + bracket for end in ("", '"', '\\"') for bracket in ("", "]", "}"))
    return next(end for end in ends if not _is_mended(arguments + end))


def _is_mended(arguments: str) -> bool:
    """Whether LangChain makes a call of these arguments."""
    try:
        return not arguments or isinstance(parse_partial_json(arguments), dict)
    except ValueError:
        return False


class ChunkReader:
    """Turns the pieces of one stream into chunks.

    Args:
        model: The model's name.
    """

    def __init__(self, model: str) -> None:
        self._model = model
        # The calls so far, by their index: id, and text of the arguments.
        self._told: dict[int, tuple[str, str]] = {}

    def __call__(self, part: OutputChunk) -> Iterator[ChatGenerationChunk]:
        """Yields the next piece as chunks, none where there is nothing in it to show.

        Calls come in chunks of their own: beside text, or in the last one, LangChain's events lose pieces of them.
        """
        calls = self._calls(part)
        if part.text or part.reasoning:
            yield ChatGenerationChunk(
                message=AIMessageChunk(content=part.text, additional_kwargs=_kwargs(part.reasoning))
            )
        if calls:
            yield ChatGenerationChunk(message=AIMessageChunk(content="", tool_call_chunks=calls))
        if part.output is not None:
            last = AIMessageChunk(
                content="",
                usage_metadata=usage(part.output),
                response_metadata=metadata(part.output, self._model),
                chunk_position="last",
            )
            yield ChatGenerationChunk(message=last)

    def _calls(self, part: OutputChunk) -> list[ToolCallChunk]:
        """The pieces of calls in a part, one for each call: of two in one chunk LangChain makes two calls."""
        new: dict[int, ToolCallChunk] = {}
        for piece in part.tool_calls:
            self._add(new, piece.index, piece.id, piece.name, piece.arguments)
        if part.output is not None:
            broken = {call.id: call for call in part.output.invalid_tool_calls}
            for index, (id_, arguments) in self._told.items():
                if broken.pop(id_, None) is not None:
                    self._add(new, index, None, None, beyond_repair(arguments))
            # Those that broke before their name was known were not told yet.
            for index, call in enumerate(broken.values(), 1 + max(self._told, default=-1)):
                self._add(new, index, call.id, call.name, call.arguments + beyond_repair(call.arguments))
        return list(new.values())

    def _add(self, new: dict[int, ToolCallChunk], index: int, id_: str | None, name: str | None, text: str) -> None:
        known, arguments = self._told.get(index, (id_ or "", ""))
        self._told[index] = (known, arguments + text)
        had = new.get(index) or tool_call_chunk(name=name, args="", id=id_, index=index)
        new[index] = {**had, "args": (had["args"] or "") + text}
