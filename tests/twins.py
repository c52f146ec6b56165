"""Random combinations of valid fields, and answers as streams and in one piece, which must be the same."""

from __future__ import annotations

import copy
import json
import random
from typing import Any

import httpx
from mutations import CALL, SCHEMA, TOOL, USER
from rawhttp import events

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
COMMON: dict[str, list[Any]] = {
    "temperature": [0, 0.7, 1.3],
    "max_tokens": [1, 2, 5, 9, 12],
    "n": [1, 2, 3],
    "top_p": [0.5, 1],
    "top_k": [1, 5],
    "min_p": [0.05],
    "stop": ["e", ["the", "o"], ["zzzz"]],
    "presence_penalty": [1.5, -1],
    "frequency_penalty": [0.7],
    "repetition_penalty": [1.2],
    "logit_bias": [{"5": -100}, {"20": 3, "21": 2.5}],
    "threshold": [None, 0, 0.3, "default"],
    "gate": ["ash", "cedar"],
    "weights": [{"ash": 2}, [1, 0, 3]],
    "combine": ["geometric", "min", "power:0.5"],
    "drafts": [True, False],
    "trace": [True],
    "user": ["someone"],
    "stream_options": [{"include_usage": True}],
}
GRAMMARS = [{"regex": "[a-z ]{3,40}"}, {"choices": ["Halkus", "the bridge", "Hal"]}, {"lark": 'start: "a" /[0-9]+/'}]
FORMATS = [
    {"type": "text"},
    {"type": "json_object"},
    {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
]
TALK = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
TALK = [*TALK, {"role": "tool", "tool_call_id": "call_1", "content": "rain"}]
SYSTEM = {"role": "developer", "content": "Be brief."}


def combined(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """A route and a valid body of it with some optional fields; its answer is repeatable."""
    body: dict[str, Any] = {"model": rng.choice(["gac", "gac", "gac/birch"]), "seed": 3}
    for name in rng.sample(sorted(COMMON), rng.randrange(8)):
        body[name] = rng.choice(COMMON[name])
    if body["model"] != "gac":
        body = {name: value for name, value in body.items() if name not in ("gate", "weights", "threshold")}
    if rng.random() < 0.4:
        body["prompt"] = rng.choice(["Where is it?", "the the the the", ["Where", "Who built it?"]])
        body |= rng.choice([{}, {"echo": True}, {"logprobs": 0}, {"logprobs": 3}, {"logprobs": 2, "echo": True}])
        body |= rng.choice([{}, {}, {"grammar": rng.choice(GRAMMARS)}])
        return TEXT, copy.deepcopy(body)
    body["messages"] = rng.choice([[USER], [SYSTEM, USER], TALK])
    body |= rng.choice([{}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 3}])
    kind = rng.randrange(4)
    if kind == 0:
        body["response_format"] = rng.choice(FORMATS)
    elif kind == 1:
        body["grammar"] = rng.choice(GRAMMARS)
    elif kind == 2:
        named = {"type": "function", "function": {"name": "get_weather"}}
        body |= {"tools": [TOOL], "tool_choice": rng.choice(["auto", "none", "required", named])}
        body |= rng.choice([{}, {"parallel_tool_calls": False}])
        body["max_tokens"] = rng.choice([5, 60])
    return CHAT, copy.deepcopy(body)


def whole(told: dict[str, Any]) -> dict[str, Any]:
    """What an answer in one piece says, for a comparison."""
    return {choice["index"]: _said(choice, choice.get("message", choice)) for choice in told["choices"]} | {
        "usage": _counted(told["usage"])
    }


def joined(content: bytes) -> dict[str, Any]:
    """What a stream says once it is put together."""
    *parts, last = events(content)
    assert last == "[DONE]", last[:300]
    choices: dict[int, dict[str, Any]] = {}
    usage = None
    for part in map(json.loads, parts):
        usage = part.get("usage") or usage
        for choice in part["choices"]:
            _add(choices.setdefault(choice["index"], {"index": choice["index"]}), choice)
    said: dict[str, Any] = {index: _said(choice, choice) for index, choice in choices.items()}
    return said | {"usage": None if usage is None else _counted(usage)}


def _add(own: dict[str, Any], choice: dict[str, Any]) -> None:
    """Adds a part of a stream to a choice."""
    delta = choice.get("delta", choice)
    for name in ("text", "content", "reasoning_content"):
        if delta.get(name) is not None:
            own[name] = own.get(name, "") + delta[name]
    for call in delta.get("tool_calls") or ():
        calls = own.setdefault("tool_calls", [])
        if call["index"] == len(calls):
            calls.append({"function": {"name": call["function"]["name"], "arguments": ""}})
        calls[call["index"]]["function"]["arguments"] += call["function"].get("arguments", "")
    for name, values in (choice.get("logprobs") or {}).items():
        if values:
            own.setdefault("logprobs", {}).setdefault(name, []).extend(values)
    assert "finish_reason" not in own, "a part after the end"
    if choice.get("finish_reason") is not None:
        own["finish_reason"] = choice["finish_reason"]


def _said(choice: dict[str, Any], message: dict[str, Any]) -> dict[str, Any]:
    logprobs = choice.get("logprobs") or {}
    tokens = logprobs.get("tokens") or [each["token"] for each in logprobs.get("content") or ()]
    functions = [call["function"] for call in message.get("tool_calls") or ()]
    calls = [(function["name"], function["arguments"]) for function in functions]
    return {
        "text": message.get("content") or message.get("text") or "",
        "reasoning": message.get("reasoning_content") or "",
        "calls": calls,
        "finish_reason": choice["finish_reason"],
        "tokens": tokens,
        "offsets": logprobs.get("text_offset") or [],
    }


def _counted(usage: dict[str, Any]) -> tuple[int, int]:
    return usage["prompt_tokens"], usage["completion_tokens"]


def difference(client: httpx.Client, route: str, body: dict[str, Any]) -> tuple[int, str]:
    """Returns the status of an answer in one piece, and how the stream differs from it; empty where it does not."""
    plain = {name: value for name, value in body.items() if name != "stream_options"}
    one = client.post(route, json=plain)
    two = client.post(route, json={**body, "stream": True})
    if one.status_code != 200 or two.status_code != 200:
        return one.status_code, "" if one.status_code == two.status_code else f"{one.text} but {two.text}"
    want, got = whole(one.json()), joined(two.content)
    if "stream_options" not in body:
        want["usage"] = None
    return 200, "" if got == want else f"{got} instead of {want}"
