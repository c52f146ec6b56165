"""Streams of answers as server-sent events."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gac_core.output import OutputChunk, RequestOutput, ToolCallChunk
from gac_core.server.generation.answers import Indexed
from gac_core.server.generation.documents import Sources, url_citations
from gac_core.server.generation.echo import Echo
from gac_core.server.generation.responses import (
    Envelope,
    Object,
    chat_logprobs,
    completion_logprobs,
    gac_fields,
    to_json,
    usage,
)

DONE = b"data: [DONE]\n\n"


def event(value: Any) -> bytes:
    """Returns a value as a server-sent event."""
    return b"data: " + to_json(value) + b"\n\n"


def merged(chunks: Iterable[Indexed]) -> dict[int, OutputChunk]:
    """Returns chunks with those of the same answer joined."""
    by_index: dict[int, list[OutputChunk]] = {}
    for index, chunk in chunks:
        by_index.setdefault(index, []).append(chunk)
    return {index: parts[0] if len(parts) == 1 else _joined(parts) for index, parts in by_index.items()}


def _joined(parts: Sequence[OutputChunk]) -> OutputChunk:
    logprobs = [item for part in parts for item in part.logprobs or ()]
    return OutputChunk(
        text="".join(part.text for part in parts),
        tokens=tuple(token for part in parts for token in part.tokens),
        logprobs=tuple(logprobs) if any(part.logprobs is not None for part in parts) else None,
        output=parts[-1].output,
        reasoning="".join(part.reasoning for part in parts),
        tool_calls=tuple(call for part in parts for call in part.tool_calls),
    )


def joined_calls(pieces: Iterable[ToolCallChunk]) -> list[ToolCallChunk]:
    """Returns pieces of tool calls with those of the same call joined."""
    calls: dict[int, ToolCallChunk] = {}
    for piece in pieces:
        before = calls.get(piece.index)
        calls[piece.index] = piece if before is None else replace(before, arguments=before.arguments + piece.arguments)
    return list(calls.values())


@dataclass
class ChatDeltas:
    """The changes of one answer's message, for its chunks.

    Attributes:
        sent: Arguments that were sent of each call, by its id.
        ids: Id of each call by its number in the engine's chunks.
    """

    sent: dict[str, str] = field(default_factory=dict)
    ids: dict[int, str] = field(default_factory=dict)

    def delta(self, chunk: OutputChunk) -> Object:
        """Returns what a chunk adds to the message; empty where nothing."""
        delta: Object = {}
        if chunk.reasoning:
            delta["reasoning_content"] = chunk.reasoning
        if chunk.text:
            delta["content"] = chunk.text
        calls = [self._call(piece) for piece in joined_calls(chunk.tool_calls)]
        if chunk.output is not None:
            nameless = "".join(call.arguments for call in chunk.output.invalid_tool_calls if call.name is None)
            if nameless:
                delta["content"] = chunk.text + nameless
            calls += self._rest(chunk.output)
        if calls:
            delta["tool_calls"] = calls
        return delta

    def _call(self, piece: ToolCallChunk) -> Object:
        function: Object = {"arguments": piece.arguments}
        call: Object = {"index": len(self.ids), "function": function}
        if piece.id is None:
            call["index"] = list(self.ids).index(piece.index)
        else:
            self.ids[piece.index] = piece.id
            call |= {"id": piece.id, "type": "function"}
            function["name"] = piece.name
        known = self.ids[piece.index]
        self.sent[known] = self.sent.get(known, "") + piece.arguments
        return call

    def _rest(self, output: RequestOutput) -> list[Object]:
        """Returns what a finished answer's malformed calls have that was not sent."""
        rest: list[Object] = []
        for call in output.invalid_tool_calls:
            if call.name is None:
                continue
            if call.id not in self.sent:
                function: Object = {"name": call.name, "arguments": call.arguments}
                rest.append({"index": len(self.sent), "id": call.id, "type": "function", "function": function})
                self.sent[call.id] = call.arguments
            elif call.arguments.startswith(self.sent[call.id]) and call.arguments != self.sent[call.id]:
                index = list(self.ids.values()).index(call.id)
                missing = call.arguments.removeprefix(self.sent[call.id])
                rest.append({"index": index, "function": {"arguments": missing}})
        return rest


class Events(ABC):
    """The events of one response.

    Args:
        envelope: What all chunks have in common.
        with_usage: Whether a last chunk has the token counts.
        n: Answers to each prompt.
    """

    def __init__(self, envelope: Envelope, with_usage: bool, n: int) -> None:
        self._fields = envelope.fields()
        self._with_usage = with_usage
        self._n = n
        # Written once per response, not once per token.
        self._before = b"data: " + to_json(self._fields).removesuffix(b"}") + b',"choices":['
        self._after = b'],"usage":null}\n\n' if with_usage else b"]}\n\n"

    @abstractmethod
    def head(self) -> bytes:
        """Returns the events before the first token; empty where there are none."""

    @abstractmethod
    def chunk(self, index: int, chunk: OutputChunk) -> bytes:
        """Returns the events of an answer's chunk; empty where there is nothing to send."""

    def end(self, outputs: Sequence[RequestOutput]) -> bytes:
        """Returns the events that end the stream."""
        if not self._with_usage:
            return DONE
        return event({**self._fields, "choices": [], "usage": usage(outputs, self._n)}) + DONE

    def _event(self, index: int, content: Object, logprobs: Object | None = None) -> bytes:
        """Returns the event of new content."""
        choice = {"index": index, **content, "logprobs": logprobs, "finish_reason": None}
        return self._before + to_json(choice) + self._after

    def _last_event(self, index: int, content: Object, output: RequestOutput) -> bytes:
        """Returns the event that ends an answer."""
        reason = output.finish_reason.value
        choice = {"index": index, **content, "logprobs": None, "finish_reason": reason, "gac": gac_fields(output)}
        return self._before + to_json(choice) + self._after


class ChatEvents(Events):
    """The events of a chat completion; arguments as in `Events`.

    Args:
        sources: The documents that annotations can name.
    """

    def __init__(self, envelope: Envelope, with_usage: bool, n: int, sources: Sources) -> None:
        super().__init__(envelope, with_usage, n)
        self._sources = sources
        self._deltas = [ChatDeltas() for _ in range(n)]

    def head(self) -> bytes:
        """Returns the events that begin the messages."""
        delta = {"role": "assistant", "content": "", "refusal": None}
        return b"".join(self._event(index, {"delta": delta}) for index in range(self._n))

    def chunk(self, index: int, chunk: OutputChunk) -> bytes:
        """Returns the events of an answer's chunk; empty where there is nothing to send."""
        delta = self._deltas[index].delta(chunk)
        out = b""
        if delta or chunk.logprobs:
            out = self._event(index, {"delta": delta or {"content": ""}}, chat_logprobs(chunk.logprobs))
        if chunk.output is None:
            return out
        cited = url_citations(chunk.output, self._sources)
        return out + self._last_event(index, {"delta": {"annotations": cited} if cited else {}}, chunk.output)


class CompletionEvents(Events):
    """The events of a completion; arguments as in `Events`.

    Args:
        echoes: For each answer what its text begins with.
    """

    def __init__(self, envelope: Envelope, with_usage: bool, n: int, echoes: Sequence[Echo]) -> None:
        super().__init__(envelope, with_usage, n)
        self._echoes = echoes
        self._offsets = [len(echo.text) for echo in echoes]

    def head(self) -> bytes:
        """Returns the events that repeat the prompts; empty without echo."""
        return b"".join(
            self._event(index, {"text": echo.text}, completion_logprobs(echo.logprobs, 0))
            for index, echo in enumerate(self._echoes)
            if echo.text
        )

    def chunk(self, index: int, chunk: OutputChunk) -> bytes:
        """Returns the events of an answer's chunk; empty where there is nothing to send."""
        out = b""
        if chunk.text or chunk.logprobs:
            logprobs = completion_logprobs(chunk.logprobs, self._offsets[index])
            self._offsets[index] += sum(map(len, logprobs["tokens"])) if logprobs else 0
            out = self._event(index, {"text": chunk.text}, logprobs)
        return out if chunk.output is None else out + self._last_event(index, {"text": ""}, chunk.output)
