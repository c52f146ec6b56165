"""Outputs of the ensemble as LangChain's messages and chunks."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import AIMessage, AIMessageChunk, InvalidToolCall
from langchain_core.messages import ToolCall as LangChainToolCall
from langchain_core.messages.ai import UsageMetadata
from langchain_core.messages.tool import ToolCallChunk, tool_call_chunk
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.utils.json import parse_partial_json

from gac_core import OutputChunk, RequestOutput, as_logprobs, as_metadata, token_counts
from gac_langchain.choices import llm_output, token_usage
from gac_langchain.documents import Source, cited_content, text_block, to_annotation

PROVIDER = "gac"


def metadata(output: RequestOutput, model: str) -> dict[str, Any]:
    """Returns an answer's `response_metadata`."""
    return {**as_metadata(output), "model_name": model, "model_provider": PROVIDER}


def usage(output: RequestOutput) -> UsageMetadata:
    """Returns an answer's token counts."""
    counts = token_counts(output)
    return UsageMetadata(
        input_tokens=counts.prompt,
        output_tokens=counts.completion,
        total_tokens=counts.total,
        input_token_details={"cache_read": counts.cached},
        output_token_details={"reasoning": counts.reasoning},
    )


def _kwargs(reasoning: str) -> dict[str, Any]:
    return {"reasoning_content": reasoning} if reasoning else {}


def to_message(output: RequestOutput, model: str, sources: Mapping[str, Source] | None = None) -> AIMessage:
    """Returns an answer as a message.

    Args:
        output: The answer.
        model: The model's name.
        sources: The documents that it was answered from, by id; its content is then a block of text with citations.
            None (default): it was answered from the prompt alone.
    """
    return AIMessage(
        content=output.text if sources is None else cited_content(output, sources),
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


def to_result(outputs: Sequence[RequestOutput], model: str, sources: Mapping[str, Source] | None = None) -> ChatResult:
    """Returns the answers to one conversation; the token counts of several are in ``llm_output`` together.

    Args:
        outputs: The answers.
        model: The model's name.
        sources: As in `to_message`.
    """
    generations = [ChatGeneration(message=to_message(output, model, sources)) for output in outputs]
    # LangChain would add it to the metadata of an only answer, which its stream could not have.
    total = llm_output([token_usage(outputs)], model) if len(outputs) > 1 else None
    return ChatResult(generations=generations, llm_output=total)


def invalidating_suffix(arguments: str) -> str:
    """Returns what must follow the arguments of a malformed call so that LangChain also takes it for malformed.

    When LangChain adds chunks up, it closes open brackets and quotes, and an agent would run the tool with half of its
    arguments. It does not repair a closing bracket of the wrong kind.

    Args:
        arguments: JSON as far as it was written; may be empty.
    """
    ends = (end + bracket for end in ("", '"', '\\"') for bracket in ("", "]", "}"))
    return next(end for end in ends if not _is_repaired(arguments + end))


def _is_repaired(arguments: str) -> bool:
    """Whether LangChain makes a valid call of these arguments."""
    try:
        return not arguments or isinstance(parse_partial_json(arguments), dict)
    except ValueError:
        return False


class ChunkReader:
    """Turns one stream of the ensemble into LangChain's chunks.

    Args:
        model: The model's name.
        sources: As in `to_message`. The citations are in the last chunk.
    """

    def __init__(self, model: str, sources: Mapping[str, Source] | None = None) -> None:
        self._model = model
        self._sources = sources
        # Id and arguments so far of each call, by its index.
        self._streamed: dict[int, tuple[str, str]] = {}

    def __call__(self, part: OutputChunk) -> Iterator[ChatGenerationChunk]:
        """Yields zero or more chunks for one chunk of the ensemble.

        Tool calls and the final metadata have chunks of their own: LangChain's event streams lose pieces of calls that
        share a chunk with text or with the end.
        """
        calls = self._calls(part)
        # Sums of chunks have all log-probabilities, so that each is in one chunk, like the text of its token.
        logprobs = {"logprobs": as_logprobs(part.logprobs)} if part.logprobs else {}
        if part.text or part.reasoning or (logprobs and part.output is None):
            yield ChatGenerationChunk(
                message=AIMessageChunk(
                    content=self._content(part.text),
                    additional_kwargs=_kwargs(part.reasoning),
                    response_metadata=logprobs,
                )
            )
            logprobs = {}
        if calls:
            yield ChatGenerationChunk(message=AIMessageChunk(content=self._content(""), tool_call_chunks=calls))
        if part.output is not None:
            last = AIMessageChunk(
                content=self._last_content(part.output),
                usage_metadata=usage(part.output),
                response_metadata={**metadata(replace(part.output, logprobs=None), self._model), **logprobs},
                chunk_position="last",
            )
            yield ChatGenerationChunk(message=last)

    def _content(self, text: str) -> str | list[str | dict[Any, Any]]:
        """Returns the content of a chunk: lists and strings do not add up."""
        if self._sources is None:
            return text
        return [text_block(text)] if text else []

    def _last_content(self, output: RequestOutput) -> str | list[str | dict[Any, Any]]:
        if self._sources is None or not output.text:
            return self._content("")
        sources = self._sources
        return [text_block("", [to_annotation(span, sources) for span in output.citations])]

    def _calls(self, part: OutputChunk) -> list[ToolCallChunk]:
        """Returns the pieces of calls in a chunk, joined to one per call: LangChain makes two calls of two pieces."""
        new: dict[int, ToolCallChunk] = {}
        for piece in part.tool_calls:
            self._add(new, piece.index, piece.id, piece.name, piece.arguments)
        if part.output is not None:
            broken = {call.id: call for call in part.output.invalid_tool_calls}
            for index, (id_, arguments) in self._streamed.items():
                if broken.pop(id_, None) is not None:
                    self._add(new, index, None, None, invalidating_suffix(arguments))
            # Calls that broke before their name was known were not streamed.
            for index, call in enumerate(broken.values(), 1 + max(self._streamed, default=-1)):
                self._add(new, index, call.id, call.name, call.arguments + invalidating_suffix(call.arguments))
        return list(new.values())

    def _add(self, new: dict[int, ToolCallChunk], index: int, id_: str | None, name: str | None, text: str) -> None:
        known, arguments = self._streamed.get(index, (id_ or "", ""))
        self._streamed[index] = (known, arguments + text)
        had = new.get(index) or tool_call_chunk(name=name, args="", id=id_, index=index)
        new[index] = {**had, "args": (had["args"] or "") + text}
