"""Requests of the soak run of a server, with the answers that they must get; and answers read from streams."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from gac_core.server.catalog import Catalog
from gac_core.server.generation.responses import chat_message
from gac_core.server.generation.translate import chat_generation, completion_generation
from gac_core.server.protocol.chat import ChatBody
from gac_core.server.protocol.completions import CompletionBody
from gac_core.server.settings import ServerSettings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
PASSAGES = "The Torno Bridge is the work of Melka Dorin. The bridge stands in Halkus. It was built in 1874."
QUESTIONS = ("Who built it?", "In which town is it?", "When was it built?", "What is it made of?")
FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {"type": "object", "properties": {"q": {"type": "string", "maxLength": 8}}, "required": ["q"]},
    },
}
SCHEMA = {
    "type": "object",
    "properties": {"town": {"type": "string", "maxLength": 12}, "year": {"type": "integer", "maximum": 2000}},
    "required": ["town", "year"],
    "additionalProperties": False,
}
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "seeded": {"temperature": 1.0, "seed": 7},
    "several": {"temperature": 1.0, "seed": 11, "n": 3},
    "tools": {"tools": [FIND], "tool_choice": "required"},
    "json": {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
    "thresholded": {"threshold": 0.5},
    "one member": {"model": "gac/birch"},
    "stopped": {"stop": ["bridge", "Halkus"]},
    "penalties": {"temperature": 0.7, "seed": 3, "frequency_penalty": 0.8, "presence_penalty": 0.3},
    "logprobs": {"logprobs": True, "top_logprobs": 3},
}

Answer = tuple[str, tuple[tuple[str, str], ...], str]
"""Text, calls and the reason of the end of one answer."""


@dataclass(frozen=True)
class Job:
    """A request, and the answers that it must get.

    Attributes:
        kind: Its kind.
        path: Its route.
        body: Its body, without ``stream``.
        answers: What the engine answers to it alone.
    """

    kind: str
    path: str
    body: dict[str, Any]
    answers: list[Answer]


def jobs(catalog: Catalog, count: int) -> list[Job]:
    """Returns requests of every kind with the answers to each alone.

    Args:
        catalog: The models.
        count: Requests of each kind.
    """
    made = []
    for index in range(count):
        text = f"{PASSAGES} Question {index}: {QUESTIONS[index % len(QUESTIONS)]}"
        for kind, fields in KINDS.items():
            body = {"model": "gac", "messages": [{"role": "user", "content": text}], "max_tokens": 32}
            made.append(_job(catalog, kind, CHAT, {"temperature": 0.0, **body, **fields}))
        body = {"model": "gac", "prompt": "passages " * (10 + index), "max_tokens": 40, "temperature": 0.0}
        made.append(_job(catalog, "text", TEXT, body))
    return made


def _job(catalog: Catalog, kind: str, path: str, body: dict[str, Any]) -> Job:
    served = catalog.find(body["model"])
    if path == CHAT:
        generation = chat_generation(ChatBody.model_validate(body), served, ServerSettings())
    else:
        generation = completion_generation(CompletionBody.model_validate(body), served, ServerSettings())
    outputs = served.ensemble.generate_choices(generation.prompts[0], generation.params)
    answers = []
    for output in outputs:
        message = chat_message(output)
        calls = [(call["function"]["name"], call["function"]["arguments"]) for call in message.get("tool_calls") or ()]
        answers.append((message["content"] or "", tuple(calls), output.finish_reason.value))
    return Job(kind, path, body, answers)


def assembled(events: list[dict[str, Any]], count: int) -> list[Answer]:
    """Returns the answers that the events of a stream make."""
    texts, calls, reasons = [""] * count, [{} for _ in range(count)], [""] * count
    for event in events:
        for choice in event["choices"]:
            index, delta = choice["index"], choice.get("delta", {"content": choice.get("text")})
            texts[index] += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                known = calls[index].setdefault(call["index"], ["", ""])
                known[0] += call["function"].get("name") or ""
                known[1] += call["function"]["arguments"]
            reasons[index] = choice["finish_reason"] or reasons[index]
    return [
        (text, tuple((name, arguments) for name, arguments in own.values()), reason)
        for text, own, reason in zip(texts, calls, reasons, strict=True)
    ]
