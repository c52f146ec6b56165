"""Valid bodies of a server's routes, and mutations of them in values, JSON and encoding."""

from __future__ import annotations

import copy
import gzip
import json
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

TOOL = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "Tells the weather.",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}
CALL = {"id": "call_1", "type": "function", "function": {"name": "get_weather", "arguments": '{"city": "Halkus"}'}}
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
USER = {"role": "user", "content": "Where is it?"}
SAMPLING = {"temperature": 0.5, "top_p": 0.9, "seed": 3, "max_tokens": 2, "stop": ["x"], "n": 2}
PENALTIES = {"presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {"5": 1.0}}
OWN = {"threshold": 0.5, "gate": "ash", "weights": {"ash": 2.0}, "top_k": 5, "min_p": 0.01, "trace": True}
VALID: list[tuple[str, dict[str, Any]]] = [
    ("/v1/chat/completions", {"model": "gac", "messages": [USER], **SAMPLING}),
    ("/v1/chat/completions", {"messages": [{"role": "system", "content": "Be brief."}, USER], **PENALTIES}),
    ("/v1/chat/completions", {"messages": [USER], "logprobs": True, "top_logprobs": 2, "stream": True}),
    ("/v1/chat/completions", {"messages": [USER], "tools": [TOOL], "tool_choice": "required", "stream": True}),
    (
        "/v1/chat/completions",
        {
            "messages": [
                USER,
                {"role": "assistant", "content": None, "tool_calls": [CALL]},
                {"role": "tool", "tool_call_id": "call_1", "content": "rain"},
            ],
            "tools": [TOOL],
            "tool_choice": {"type": "function", "function": {"name": "get_weather"}},
            "parallel_tool_calls": False,
        },
    ),
    (
        "/v1/chat/completions",
        {
            "messages": [USER],
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA, "strict": True}},
        },
    ),
    ("/v1/chat/completions", {"messages": [USER], "response_format": {"type": "json_object"}, **OWN}),
    ("/v1/completions", {"model": "gac/ash", "prompt": "Where", **SAMPLING}),
    ("/v1/completions", {"prompt": ["Where", "Who"], "logprobs": 2, "stream": True, **PENALTIES}),
    ("/v1/completions", {"prompt": "Where", "grammar": {"regex": "[a-z]{3}"}, "timeout": 5, "combine": "geometric"}),
    ("/v1/completions", {"prompt": "Where", "stream": True, "stream_options": {"include_usage": True}, **OWN}),
    (
        "/v1/chat/completions",
        {
            "messages": [{"role": "user", "content": "{document} Where?"}],
            "documents": ["It is here.", {"text": "It is there.", "id": "b", "title": "B", "url": "https://b.example"}],
            "document_weights": [1, 2.5],
            "prior": "none",
            "combine_documents": "contrast",
            "n": 2,
        },
    ),
    ("/v1/completions", {"prompt": "<here> Where?", "documents": [{"text": "a", "score": 0.5}], "place": "<here>"}),
    ("/warm", {"prompt": "{document}", "documents": ["a", {"text": "b", "id": "c"}], "pin": False}),
    ("/tokenize", {"model": "gac", "prompt": "Where is it?"}),
    ("/detokenize", {"model": "gac", "tokens": [5, 6, 7]}),
]
LEAVES: list[Any] = [
    *(None, True, False, 0, 1, -1, 3, 2**31, 2**63, 2**64, -(2**63) - 1, 10**400, 0.5, -0.1, 1e308, 5e-324),
    *(float("nan"), float("inf"), -float("inf"), "", "a", "0", "null", "default", "auto", "required", "gac", "ash"),
    *("\ud800", "\udfff\ud800", "\x00", "a\x00b", "\u202e\ufeff\u2028", "e\u0301" * 20, "\U0001f468\u200d\U0001f469"),
    *(
        "<|im_end|>",
        "{{ messages }}",
        "{% for x in range(10**9) %}{% endfor %}",
        "%s%n",
        "../../etc/passwd",
        "a" * 20_000,
    ),
    *([], {}, [[]], [{}], [None], [""], [0] * 300, {"": ""}, {"type": "object"}, {"$ref": "#"}, {"role": "user"}),
    *({"regex": "(a|a)*b"}, {"regex": "("}, {"lark": "start: start"}, {"choices": []}, {"regex": "a", "lark": "b"}),
    *({"type": "text"}, [{"type": "text", "text": "a"}], [{"type": "image_url", "image_url": {"url": "http://a"}}]),
]
SWAPPED: list[Callable[[Any], Any]] = [str, lambda value: [value], lambda value: {"a": value}, lambda value: 3]
NAMES = ["type", "name", "content", "nonsense", "", "\x00", "__class__", "a" * 300]


@dataclass(frozen=True)
class Mutation:
    """One body.

    Attributes:
        route: The path.
        content: The bytes, or an iterator of parts.
        shown: The bytes, for a report.
        headers: Headers of the request.
    """

    route: str
    content: bytes | Iterator[bytes]
    shown: str
    headers: dict[str, str] = field(default_factory=dict)


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The paths of all values within a value, without its own."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [own for key, part in items for own in [(*path, key), *places(part, (*path, key))]]


def changed(rng: random.Random, body: dict[str, Any]) -> dict[str, Any]:
    """A copy of a body in which one value is another one, gone, of another type, nested, or beside a new one."""
    body = copy.deepcopy(body)
    path = rng.choice(places(body))
    parent: Any = body
    for key in path[:-1]:
        parent = parent[key]
    kind = rng.random()
    if kind < 0.5:
        parent[path[-1]] = copy.deepcopy(rng.choice(LEAVES))
    elif kind < 0.6:
        del parent[path[-1]]
    elif kind < 0.8:
        parent[path[-1]] = rng.choice(SWAPPED)(parent[path[-1]])
    elif kind < 0.85:
        parent[path[-1]] = Nested(rng.choice([50, 500, 3000]), parent[path[-1]])
    elif isinstance(parent, dict):
        parent[rng.choice(["type", "name", "content", "nonsense", "", "\x00", "__class__", "a" * 300])] = rng.choice(
            LEAVES
        )
    else:
        parent.extend(parent * rng.choice([1, 30]))
    return body


@dataclass(frozen=True)
class Nested:
    """A value within so many lists; a value of its own, since Python writes no JSON so deep."""

    depth: int
    value: Any


def written(body: Any) -> str:
    """A body as JSON, with NaN, surrogates and nested values as they are."""
    deep: list[Nested] = []

    def default(value: Any) -> str:
        deep.append(value)
        return f"@@{len(deep) - 1}@@"

    text = json.dumps(body, default=default)
    for place, each in enumerate(deep):
        value = written(each.value)
        text = text.replace(f'"@@{place}@@"', "[" * each.depth + value + "]" * each.depth)
    return text


def recoded(rng: random.Random, text: str) -> tuple[bytes | Iterator[bytes], dict[str, str]]:
    """A JSON text as a body that is cut, long, doubled, wrongly encoded, compressed or sent in parts."""
    data = text.encode()
    half = rng.randrange(len(data))

    def parts() -> Iterator[bytes]:
        for place in range(0, len(data), 50):
            yield data[place : place + 50]

    return rng.choice(
        [
            (b"", {}),
            (data[:half], {}),
            (data + data, {}),
            (data[:half] + bytes([rng.randrange(256)]) + data[half + 1 :], {}),
            (data.replace(b"{", b'{"model": "gac", ', 1), {}),
            (b"\xef\xbb\xbf" + data, {}),
            (text.encode("utf-16"), {}),
            (text.replace("Where", "\u00e9").encode("latin-1", "replace"), {}),
            (data, {"content-type": "text/plain"}),
            (data, {"content-type": "application/json; charset=utf-16"}),
            (data, {"content-type": "application/x-www-form-urlencoded"}),
            (data, {"content-type": ""}),
            (data, {"content-encoding": "gzip"}),
            (gzip.compress(data), {"content-encoding": "gzip"}),
            (data, {"accept": "text/html", "x-request-id": "a" * 500}),
            (data, {"x-request-id": "a b"}),
            (data, {"authorization": "Bearer nothing", "openai-organization": "a"}),
            (parts(), {}),
            (data.replace(b"Where", b"Where" * rng.choice([10, 2000, 200_000])), {}),
            (data.replace(b"Where", b"\\u0000\\ud800" * rng.choice([1, 2000])), {}),
        ]
    )


def mutated(rng: random.Random) -> Mutation:
    """A valid body after some mutations; its answer is short and greedy unless a mutation changed that."""
    route, body = rng.choice(VALID)
    if "tokenize" not in route:
        body = {"model": "gac", "temperature": 0, "max_tokens": 2, **body}
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        if body:
            body = changed(rng, body)
    text = written(body)
    content, headers = recoded(rng, text) if rng.random() < 0.25 else (text.encode(), {})
    return Mutation(
        route, content, f"{text} {headers} {content if isinstance(content, bytes) else 'in parts'!r}", headers
    )
