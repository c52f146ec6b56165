"""Bodies of requests: every refusal has a status, a code, the field and an id; what is accepted arrives unchanged."""

from __future__ import annotations

import json
import threading

import httpx
import PIL.Image
import pytest
from conftest import QUESTION
from server_fixture import running

from gac_core import Image
from gac_core.output import OutputChunk, ToolCallChunk
from gac_core.server.catalog import Catalog
from gac_core.server.errors import ApiError
from gac_core.server.generation.conversations import conversation_of
from gac_core.server.generation.responses import LARGE_ENTRIES, answer_response, text_of
from gac_core.server.generation.streaming import joined_calls, merged
from gac_core.server.generation.translate import NO_CONTEXT_TOKENS, chat_generation, completion_generation
from gac_core.server.protocol.chat import ChatBody
from gac_core.server.protocol.completions import CompletionBody
from gac_core.server.protocol.parsing import MAX_DEPTH, parsed, read_json
from gac_core.server.routes import tokens
from gac_core.server.routes.routing_errors import ROUTES
from gac_core.server.settings import ServerSettings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
USER = {"role": "user", "content": "a"}
CALL = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}


@pytest.fixture(scope="module")
def client(ensemble):
    settings = ServerSettings(max_choices=4, max_tokens=50, request_timeout=60)
    with running(Catalog({"gac": ensemble}), settings) as server, httpx.Client(base_url=server.url) as opened:
        yield opened


def image(url: str, **options: str) -> dict:
    return {
        "role": "user",
        "content": [{"type": "text", "text": "a"}, {"type": "image_url", "image_url": {"url": url, **options}}],
    }


PIXEL = Image.open(PIL.Image.new("RGB", (1, 1))).data_url
JSON = {"type": "json_schema", "json_schema": {"name": "a", "schema": {"type": "object"}}}


REFUSED = [
    ({"messages": []}, "messages", "invalid_value"),
    ({"messages": [{"role": "user"}]}, "messages[0].content", "missing_field"),
    ({"messages": [{"role": "someone", "content": "a"}]}, "messages[0].role", "invalid_value"),
    ({"messages": [{"content": "a"}]}, "messages[0].role", "missing_field"),
    ({"messages": [image("x")]}, "messages[0].content[1].image_url.url", "invalid_value"),
    ({"messages": [image("http://localhost/a.png")]}, "messages[0].content[1].image_url.url", "invalid_value"),
    ({"messages": [image("/etc/passwd")]}, "messages[0].content[1].image_url.url", "invalid_value"),
    ({"messages": [image("data:image/png;base64,AAAA")]}, "messages[0].content[1].image_url.url", "invalid_value"),
    ({"messages": [image(PIXEL, detail="high")]}, "messages[0].content[1].image_url.detail", "invalid_value"),
    ({"messages": [image(PIXEL, detial="auto")]}, "messages[0].content[1].image_url.detial", "unknown_parameter"),
    ({"messages": [image(PIXEL) | {"role": "system"}]}, "messages[0].content[1].type", "invalid_value"),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "txet": 1}]}]},
        "messages[0].content[0].txet",
        "unknown_parameter",
    ),
    ({"messages": QUESTION, "response_format": JSON | {"scheme": 1}}, "response_format.scheme", "unknown_parameter"),
    ({"messages": [USER, {"role": "assistant"}]}, "messages[1]", "invalid_value"),
    ({"messages": [USER | {"tool_calls": [CALL]}]}, "messages[0].tool_calls", "unknown_parameter"),
    ({"messages": QUESTION, "temperatur": 1}, "temperatur", "unknown_parameter"),
    ({"messages": QUESTION, "functions": []}, "functions", "unknown_parameter"),
    ({"messages": QUESTION, "store": True}, "store", "invalid_value"),
    ({"messages": QUESTION, "reasoning_effort": "low"}, "reasoning_effort", "invalid_value"),
    ({"messages": QUESTION, "max_tokens": 0}, "max_tokens", "invalid_value"),
    ({"messages": QUESTION, "max_tokens": 51}, "max_tokens", "invalid_value"),
    ({"messages": QUESTION, "max_tokens": True}, "max_tokens", "invalid_value"),
    ({"messages": QUESTION, "max_completion_tokens": 51}, "max_completion_tokens", "invalid_value"),
    ({"messages": QUESTION, "temperature": 2.1}, "temperature", "invalid_value"),
    ({"messages": QUESTION, "n": 5}, "n", "invalid_value"),
    ({"messages": QUESTION, "timeout": 61}, "timeout", "invalid_value"),
    ({"messages": QUESTION, "top_logprobs": 2}, "top_logprobs", "invalid_value"),
    ({"messages": QUESTION, "stop": ["a", ""]}, "stop[1]", "invalid_value"),
    ({"messages": QUESTION, "stream_options": {}}, "stream_options", "invalid_value"),
    ({"messages": QUESTION, "logit_bias": {"x": 1}}, "logit_bias.x", "invalid_value"),
    ({"messages": QUESTION, "logit_bias": {"99999": 1}}, "logit_bias", "invalid_value"),
    ({"messages": QUESTION, "logit_bias": {"5": 1, "05": 2}}, "logit_bias.05", "invalid_value"),
    ({"messages": QUESTION, "gate": "oak"}, "gate", "invalid_value"),
    ({"messages": QUESTION, "weights": [1]}, "weights", "invalid_value"),
    ({"messages": QUESTION, "combine": "sum"}, "combine", "invalid_value"),
    ({"messages": QUESTION, "model": "gac/ash", "gate": "birch"}, "gate", "invalid_value"),
    ({"messages": QUESTION, "model": "gac/ash", "gate": "default"}, "gate", "invalid_value"),
    ({"messages": QUESTION, "grammar": {"regex": "(("}}, "grammar", "invalid_grammar"),
    ({"messages": QUESTION, "tool_choice": "required"}, "tool_choice", "invalid_value"),
    ({"messages": QUESTION, "tool_choice": "required", "grammar": {"regex": "a"}}, "grammar", "invalid_value"),
    ({"messages": QUESTION, "tool_choice": {"type": "function", "function": {"name": "f"}}}, "tool_choice", None),
    ({"messages": [{"role": "user", "content": "a " * 3000}]}, "messages", "context_length_exceeded"),
]


@pytest.mark.parametrize(("body", "param", "code"), REFUSED)
def test_refusals_name_the_field(client, body, param, code):
    response = client.post(CHAT, json=body, headers={"x-request-id": "mine"})
    error = response.json()["error"]
    assert response.status_code == 400
    assert (error["param"], error["code"]) == (param, code or "invalid_value")
    assert error["type"] == "invalid_request_error"
    assert error["request_id"] == response.headers["x-request-id"] == "mine"


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({}, "prompt"),
        ({"prompt": ""}, "prompt"),
        ({"prompt": [1, 2]}, "prompt[0]"),
        ({"prompt": ["a"] * 5}, "prompt"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "best_of": 2}, "best_of"),
        ({"prompt": "a", "logprobs": 6}, "logprobs"),
    ],
)
def test_refusals_of_completions(client, body, param):
    response = client.post(TEXT, json=body)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    ("route", "body", "message"),
    [
        (CHAT, {"temperature": 3}, "temperature must be at most 2, not 3"),
        (CHAT, {"top_k": -1}, "top_k must be at least 1, not -1; leave it out for no limit"),
        (CHAT, {"threshold": "0.5"}, "threshold must be a number, or 'default', not '0.5'"),
        (CHAT, {"stream": "true"}, "stream must be true or false, not 'true'"),
        (CHAT, {"store": True}, "store must be false, not true; answers are not stored; leave it out"),
        (CHAT, {"logprobs": [None]}, "logprobs must be true or false, not [None]"),
        (CHAT, {"messages": []}, "messages must have at least 1 item, not []"),
        (CHAT, {"messages": [{"role": "user", "content": None}]}, "messages[0].content must be a string, or an array"),
        (CHAT, {"messages": [{"role": "bot", "content": "a"}]}, "messages[0].role must be one of 'system', "),
        (
            CHAT,
            {"tool_choice": "f"},
            "tool_choice must be 'none', 'auto' or 'required', or an object, not 'f'; for one",
        ),
        (CHAT, {"tools": [{"type": "web_search"}]}, "tools[0].type must be 'function', not 'web_search'; OpenAI's own"),
        (CHAT, {"tools": [{"type": "function", "name": "f"}]}, "tools[0].function is missing; give it; unknown field"),
        (
            CHAT,
            {"response_format": {"type": "json_schema", "schema": {}}},
            "unknown field 'response_format.schema'; did",
        ),
        (CHAT, {"grammar": {"regexp": "a"}}, "unknown field 'grammar.regexp'; did you mean regex?"),
        (CHAT, {"extra_body": {}}, "unknown field 'extra_body'; put its fields into the body itself"),
        (
            CHAT,
            {"logit_bias": {"word": 1}},
            "logit_bias.word must match pattern '^(0|[1-9][0-9]{0,8})$', not 'word'; keys are",
        ),
        (CHAT, {"metadata": {"store": 1}}, "metadata.store must be a string, not 1"),
        (TEXT, {"messages": [USER]}, "unknown field 'messages'; use prompt, or POST /v1/chat/completions"),
        (TEXT, {"promt": "a"}, "unknown field 'promt'; did you mean prompt?"),
        (TEXT, {"prompt": [1, 2]}, "prompt[0] must be a string, not 1; members have different tokenizers"),
        ("/tokenize", {"text": "a"}, "prompt is missing; give it; unknown field 'text'"),
        ("/tokenize", {"messages": [USER], "chat": 1}, "unknown field 'chat'; leave it out"),
    ],
)
def test_messages_have_the_value_and_a_remedy(client, route, body, message):
    asked = {"messages": QUESTION} | body if route == CHAT else body
    assert client.post(route, json=asked).json()["error"]["message"].startswith(message)


def test_routes_that_do_not_exist(client):
    def message(method: str, path: str) -> str:
        response = client.request(method, path, json={})
        assert response.status_code in (404, 405)
        return response.json()["error"]["message"]

    base = "did you mean /v1/chat/completions? (base URLs of clients end in /v1)"
    assert message("POST", "/chat/completions") == f"there is no route '/chat/completions'; {base}"
    assert message("POST", "/v1/v1/chat/completions").endswith(base)
    # Not a redirect, which would name another scheme and host than a client of a proxy uses.
    assert message("POST", f"{CHAT}/") == f"there is no route '{CHAT}/'; did you mean {CHAT}?"
    assert message("POST", "/v1/tokenize").endswith("; did you mean /tokenize?")
    assert "; routes are: /v1/chat/completions, " in message("POST", "/v1/embeddings")
    assert message("GET", CHAT) == f"{CHAT} does not take GET; use POST"


def test_routes_of_messages_exist(client):
    paths = client.get("/openapi.json").json()["paths"]
    assert set(ROUTES) - {"/metrics", "/openapi.json"} == {path for path in paths if "{" not in path}


def test_texts_that_are_not_encoded(client, monkeypatch):
    monkeypatch.setattr(tokens, "MAX_BYTES", 1000)
    monkeypatch.setattr(tokens, "BYTES_PER_TOKEN", 2)
    assert client.post("/tokenize", json={"prompt": "a " * 800}).status_code == 200
    response = client.post("/tokenize", json={"prompt": "a " * 1200})
    assert (response.status_code, response.json()["error"]["code"]) == (413, "body_too_large")


def test_refusals_without_a_field(client):
    asked = {"messages": QUESTION, "model": "oak"}
    assert client.post(CHAT, json=asked).json()["error"]["code"] == "model_not_found"
    assert client.post(CHAT, content=b"{}").json()["error"]["code"] == "unsupported_media_type"
    assert client.get("/v2").json()["error"]["code"] == "not_found"
    assert client.get(CHAT).json()["error"]["code"] == "method_not_allowed"
    nul = client.post(TEXT, json={"prompt": "a\0b", "max_tokens": 1})
    assert nul.status_code == 200


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b'{"a": NaN}', b"[-Infinity]", b'"\\ud800"', b"\xff", b"[" * 100_000, b"1" * 5000),
        b"[" * (MAX_DEPTH + 1) + b"]" * (MAX_DEPTH + 1),
    ],
)
def test_what_is_not_json(content):
    with pytest.raises(ApiError) as caught:
        read_json(content)
    assert (caught.value.status, caught.value.code) == (400, "invalid_json")


@pytest.mark.parametrize("value", [10**400, "1e999", True, [], {}])
def test_numbers_that_are_none(value):
    written = value if isinstance(value, str) else json.dumps(value)
    with pytest.raises(ApiError) as caught:
        parsed(CompletionBody, f'{{"prompt": "a", "temperature": {written}}}'.encode(), "application/json")
    assert caught.value.param == "temperature"


def body_of(**fields) -> ChatBody:
    return parsed(ChatBody, json.dumps({"messages": [USER], **fields}).encode(), "application/json")


def test_conversations():
    messages = [
        {"role": "developer", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "rief"}]},
        USER,
        {"role": "assistant", "content": None, "tool_calls": [CALL], "refusal": None, "reasoning_content": "so"},
        {"role": "tool", "content": "42", "tool_call_id": "1"},
    ]
    made = conversation_of(body_of(messages=messages), "Answer in JSON.")
    assert [turn.role for turn in made.turns] == ["system", "user", "assistant", "tool"]
    assert made.turns[0].content == "brief\n\nAnswer in JSON."
    assert (made.turns[2].tool_calls[0].name, made.turns[2].reasoning) == ("f", "so")
    assert conversation_of(body_of(), "Answer in JSON.").turns[0].content == "Answer in JSON."


def test_calls_that_were_cut_off_are_kept_as_text():
    cut = {**CALL, "function": {"name": "f", "arguments": '{"q": "a'}}
    empty = {**CALL, "function": {"name": "f", "arguments": ""}}
    turn = conversation_of(body_of(messages=[USER, {"role": "assistant", "tool_calls": [cut, empty]}])).turns[1]
    assert turn.content == '<tool_call>{"name": "f", "arguments": {"q": "a'
    assert [call.arguments for call in turn.tool_calls] == ["{}"]


def test_allowed_tools():
    tools = [{"type": "function", "function": {"name": name}} for name in ("f", "g", "h")]
    allowed = {"mode": "required", "tools": [{"type": "function", "function": {"name": name}} for name in "fh"]}
    made = conversation_of(body_of(tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": allowed}))
    assert ([tool.name for tool in made.tools], made.tool_choice) == (["f", "h"], "required")
    named = {"type": "function", "function": {"name": "g"}}
    assert conversation_of(body_of(tools=tools, tool_choice=named)).tool_choice == "g"


def test_parameters(ensemble):
    served = Catalog({"gac": ensemble}).find(None)
    fields = {"stop": "x", "logit_bias": {"5": 2}, "presence_penalty": 1, "seed": 7, "top_k": 3, "threshold": None}
    params = chat_generation(body_of(**fields, logprobs=True, n=2), served, ServerSettings()).params
    assert (params.stop, params.logit_bias, params.presence_penalty) == (("x",), {5: 2.0}, 1.0)
    assert (params.seed, params.top_k, params.threshold, params.logprobs, params.n) == (7, 3, None, 0, 2)
    assert (params.temperature, params.timeout, params.max_tokens) == (1.0, 600.0, ensemble.context)
    limited = ServerSettings(max_tokens=9, temperature=0.0, request_timeout=None)
    params = chat_generation(body_of(threshold="default"), served, limited).params
    assert (params.max_tokens, params.temperature, params.timeout, params.threshold) == (9, 0.0, None, "default")
    body = CompletionBody(prompt=["a", "b"], max_tokens=4)
    assert completion_generation(body, served, ServerSettings()).prompts == ("a", "b")
    assert NO_CONTEXT_TOKENS == 4096


def test_chunks_of_one_answer_are_joined():
    one = OutputChunk("a", (b"a",), tool_calls=(ToolCallChunk(0, "x", "f", ""), ToolCallChunk(0, None, None, "{")))
    two = OutputChunk("b", (b"b",), reasoning="r", tool_calls=(ToolCallChunk(0, None, None, "}"),))
    joined = merged([(0, one), (1, two), (0, two)])
    assert joined[1] is two
    assert (joined[0].text, joined[0].tokens, joined[0].reasoning) == ("ab", (b"a", b"b"), "r")
    assert joined_calls(joined[0].tool_calls) == [ToolCallChunk(0, "x", "f", "{}")]


@pytest.mark.parametrize("count", [1, LARGE_ENTRIES])
async def test_large_bodies_are_made_beside_the_event_loop(ensemble, count):
    outputs = [ensemble.generate("a", max_tokens=1, logprobs=0)] * count
    makers = []

    def make_body() -> bytes:
        makers.append(threading.current_thread())
        return b"{}"

    assert (await answer_response(outputs, make_body)).body == b"{}"
    assert (makers == [threading.current_thread()]) == (count == 1)


def test_tokens_that_are_not_text():
    assert text_of("ä".encode()) == "ä"
    assert text_of(b"\xc3") == "bytes:\\xc3"
