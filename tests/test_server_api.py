"""The server's protocol: answers equal those of the ensemble, streamed or not, and models are what they are called."""

from __future__ import annotations

import asyncio
import json
import time
from contextlib import suppress

import httpx
import jsonschema
import pytest
from conftest import EMBEDDED, LONG_PROMPT, QUESTION, member_ids
from server_fixture import running

from gac_core import Conversation, Ensemble
from gac_core.server.app import create_app
from gac_core.server.catalog import Catalog
from gac_core.server.generation import responses
from gac_core.server.settings import ServerSettings

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
FIND = {
    "type": "function",
    "function": {
        "name": "find",
        "parameters": {"type": "object", "properties": {"q": {"type": "string", "maxLength": 5}}, "required": ["q"]},
    },
}


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as opened:
        yield opened


def post(client, path: str, **body):
    """The value of an answer, or of a stream the values of its events."""
    response = client.post(path, json=body)
    assert response.status_code == 200, response.text
    if not body.get("stream"):
        return response.json()
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


def assembled(chunks, index: int = 0) -> dict:
    """The message that the deltas of an answer make."""
    message: dict = {"content": "", "tool_calls": {}}
    choices = [choice for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    assert choices[0]["delta"]["role"] == "assistant"
    for choice in choices:
        message["content"] += choice["delta"].get("content") or ""
        for call in choice["delta"].get("tool_calls", ()):
            known = message["tool_calls"].setdefault(call["index"], {"name": "", "arguments": ""})
            known["name"] += call["function"].get("name") or ""
            known["arguments"] += call["function"]["arguments"]
    return {**message, "finish_reason": choices[-1]["finish_reason"], "gac": choices[-1]["gac"]}


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 3}])
def test_chat_completions_equal_the_ensemble(client, ensemble, sampling):
    expected = ensemble.generate(QUESTION, max_tokens=12, **sampling)
    body = {"messages": QUESTION, "max_completion_tokens": 12, **sampling}
    answer = post(client, CHAT, **body)
    [choice] = answer["choices"]
    assert choice["message"]["content"] == expected.text
    assert choice["finish_reason"] == expected.finish_reason.value
    assert answer["usage"]["completion_tokens"] == expected.usage.completion_tokens
    assert answer["usage"]["prompt_tokens"] == expected.usage.prompt_tokens
    chunks = post(client, CHAT, **body, stream=True, stream_options={"include_usage": True})
    streamed = assembled(chunks)
    assert (streamed["content"], streamed["finish_reason"]) == (expected.text, expected.finish_reason.value)
    assert chunks[-1]["choices"] == []
    assert all(chunk["usage"] is None for chunk in chunks[:-1])
    assert chunks[-1]["usage"]["total_tokens"] == answer["usage"]["total_tokens"]


def test_several_answers(client, ensemble):
    sampling = {"temperature": 1.0, "seed": 5, "max_tokens": 6}
    expected = ensemble.generate_choices(QUESTION, n=3, **sampling)
    answer = post(client, CHAT, messages=QUESTION, n=3, **sampling)
    assert [choice["message"]["content"] for choice in answer["choices"]] == [each.text for each in expected]
    assert answer["usage"]["prompt_tokens"] == expected[0].usage.prompt_tokens
    assert answer["usage"]["completion_tokens"] == sum(each.usage.completion_tokens for each in expected)
    chunks = post(client, CHAT, messages=QUESTION, n=3, **sampling, stream=True)
    assert [assembled(chunks, index)["content"] for index in range(3)] == [each.text for each in expected]


def test_chunks_have_the_log_probabilities_of_their_tokens(client, ensemble):
    expected = ensemble.generate(QUESTION, max_tokens=6, logprobs=2)
    body = {"messages": QUESTION, "max_tokens": 6, "temperature": 0, "logprobs": True, "top_logprobs": 2}
    [choice] = post(client, CHAT, **body)["choices"]
    chunks = post(client, CHAT, **body, stream=True)
    streamed = [entry for chunk in chunks for entry in (chunk["choices"][0]["logprobs"] or {"content": []})["content"]]
    assert [bytes(entry["bytes"]) for entry in streamed] == [item.token for item in expected.logprobs]
    for entry, plain, item in zip(streamed, choice["logprobs"]["content"], expected.logprobs, strict=True):
        assert entry["logprob"] == pytest.approx(item.logprob, abs=1e-5)
        assert plain["logprob"] == pytest.approx(item.logprob, abs=1e-5)
        assert [bytes(top["bytes"]) for top in entry["top_logprobs"]] == [token for token, _ in item.top]


def test_completions_equal_the_ensemble(client, ensemble):
    prompts = ["The Torno Bridge", LONG_PROMPT]
    sampling = {"temperature": 0.7, "seed": 2, "max_tokens": 6}
    expected = [each for prompt in prompts for each in ensemble.generate_choices(prompt, n=2, **sampling)]
    body = {"prompt": prompts, "n": 2, "echo": True, "logprobs": 1, **sampling}
    answer = post(client, TEXT, **body)
    texts = [prompt + each.text for prompt, each in zip([p for p in prompts for _ in "ab"], expected, strict=True)]
    assert [choice["text"] for choice in answer["choices"]] == texts
    assert [choice["index"] for choice in answer["choices"]] == [0, 1, 2, 3]
    counts = [each.usage.prompt_tokens for each in expected]
    assert answer["usage"]["prompt_tokens"] == counts[0] + counts[2]
    chunks = post(client, TEXT, **body, stream=True)
    for index, choice in enumerate(answer["choices"]):
        own = [c for chunk in chunks for c in chunk["choices"] if c["index"] == index]
        assert "".join(c["text"] for c in own) == choice["text"]
        offsets = [offset for c in own if c["logprobs"] for offset in c["logprobs"]["text_offset"]]
        assert offsets == choice["logprobs"]["text_offset"]
        for token, offset in zip(choice["logprobs"]["tokens"], offsets, strict=True):
            assert choice["text"][offset:].startswith(token)


def test_the_record_counts_each_prompt_once(client, server):
    body = {"prompt": ["Where is", "The bridge stands"], "n": 2, "max_tokens": 3, "temperature": 1, "seed": 1}
    response = client.post(TEXT, json=body)
    record = server.record(response.headers["x-request-id"])
    usage = response.json()["usage"]
    assert record.prompt_tokens == usage["prompt_tokens"]
    assert record.cached_tokens == usage["prompt_tokens_details"]["cached_tokens"]
    assert len(record.outputs) == 4


def test_scores_of_prompts(client, ensemble):
    body = {"prompt": "The Torno Bridge", "echo": True, "logprobs": 2}
    score = ensemble.score("", body["prompt"], logprobs=2)
    answer = post(client, TEXT, **body, max_tokens=0)
    [choice] = answer["choices"]
    assert choice["text"] == "".join(choice["logprobs"]["tokens"]) == body["prompt"]
    assert sum(choice["logprobs"]["token_logprobs"]) == pytest.approx(score.logprob, abs=1e-4)
    assert answer["usage"]["completion_tokens"] == 0
    # Penalties, biases and grammars concern the continuation only.
    own = {"presence_penalty": 2, "logit_bias": {"64": 9}, "grammar": {"regex": "[a-z]{9}"}}
    [longer] = post(client, TEXT, **body, **own, max_tokens=2, temperature=0)["choices"]
    count = len(score.tokens)
    assert longer["logprobs"]["token_logprobs"][:count] == pytest.approx(choice["logprobs"]["token_logprobs"], abs=1e-4)
    assert len(longer["logprobs"]["tokens"]) > count
    assert client.post(TEXT, json={**body, "max_tokens": 0, "echo": False}).json()["error"]["param"] == "max_tokens"


@pytest.mark.parametrize("max_tokens", [8, 35, 60])
def test_tool_calls(client, ensemble, max_tokens):
    """Whole, cut in the arguments, and cut before the name, which becomes content."""
    prompt = Conversation(QUESTION, [FIND], tool_choice="required", parallel_tool_calls=False)
    expected = ensemble.generate(prompt, max_tokens=max_tokens)
    body = {
        "messages": QUESTION,
        "tools": [FIND],
        "tool_choice": "required",
        "parallel_tool_calls": False,
        "temperature": 0,
        "max_tokens": max_tokens,
    }
    [choice] = post(client, CHAT, **body)["choices"]
    named = [*expected.tool_calls, *(call for call in expected.invalid_tool_calls if call.name)]
    nameless = "".join(call.arguments for call in expected.invalid_tool_calls if not call.name)
    calls = [call["function"] for call in choice["message"].get("tool_calls", ())]
    assert calls == [{"name": call.name, "arguments": call.arguments} for call in named]
    assert (choice["message"]["content"] or "") == expected.text + nameless
    streamed = assembled(post(client, CHAT, **body, stream=True))
    assert list(streamed["tool_calls"].values()) == calls
    assert streamed["content"] == (choice["message"]["content"] or "")
    assert streamed["finish_reason"] == choice["finish_reason"] == expected.finish_reason.value


def test_own_fields(client, ensemble):
    body = {"messages": QUESTION, "max_tokens": 4, "temperature": 0}
    own = {"threshold": 0.4, "gate": "birch", "weights": {"ash": 3}, "combine": "geometric"}
    [choice] = post(client, CHAT, **body, **own, trace=True, drafts=False)["choices"]
    expected = ensemble.generate(QUESTION, max_tokens=4, **own)
    shown = choice["gac"]
    assert (choice["message"]["content"], shown["threshold"]) == (expected.text, 0.4)
    assert (shown["gate"], shown["combine"]) == ("birch", "geometric")
    assert shown["weights"]["ash"] == pytest.approx(0.6)
    assert len(shown["token_stats"]) == expected.stats.steps
    [chosen] = post(client, CHAT, **body, grammar={"choices": ["yes", "no"]})["choices"]
    assert chosen["message"]["content"] in ("yes", "no")


def test_response_formats(client):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"]}
    wanted = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    body = {"messages": QUESTION, "temperature": 0, "max_tokens": 80}
    [choice] = post(client, CHAT, **body, response_format=wanted)["choices"]
    assert choice["finish_reason"] == "length" or isinstance(json.loads(choice["message"]["content"])["n"], int)
    assert choice["message"]["content"].startswith('{"n": ')
    [choice] = post(client, CHAT, **body, response_format={"type": "json_object"})["choices"]
    assert choice["message"]["content"].startswith("{")


def test_models(client, ensemble):
    data = client.get("/v1/models").json()["data"]
    assert [model["id"] for model in data] == ["gac", *(f"gac/{name}" for name in ensemble.names)]
    shown = client.get("/v1/models/gac/ash").json()
    assert (shown["kind"], shown["parent"], shown["max_model_len"]) == ("member", "gac", ensemble.context)
    alone = ensemble.generate(QUESTION, max_tokens=8, gate="birch", threshold=0.0)
    answer = post(client, CHAT, model="gac/birch", messages=QUESTION, max_tokens=8, temperature=0)
    assert answer["model"] == "gac/birch"
    assert answer["choices"][0]["message"]["content"] == alone.text
    assert list(answer["choices"][0]["gac"]["members"]) == ["birch"]


def test_two_ensembles_on_one_pool():
    with Ensemble.load(EMBEDDED) as first, Ensemble.load(EMBEDDED[:2], threshold=0.5) as second:
        assert member_ids(second) == member_ids(first)[:2]
        with running(Catalog({"three": first, "two": second})) as server, httpx.Client(base_url=server.url) as client:
            body = {"messages": QUESTION, "temperature": 0, "max_tokens": 4}
            refused = client.post(CHAT, json=body)
            assert (refused.status_code, refused.json()["error"]["param"]) == (404, "model")
            for name, ensemble in (("three", first), ("two", second)):
                answer = post(client, CHAT, model=name, **body)
                assert answer["choices"][0]["message"]["content"] == ensemble.generate(QUESTION, max_tokens=4).text


def test_tokens(client, ensemble):
    shown = post(client, "/tokenize", messages=QUESTION, tools=[FIND])
    assert shown["count"] == ensemble.count_tokens(Conversation(QUESTION, [FIND])) == max(shown["members"].values())
    assert len(shown["tokens"]) == shown["members"][ensemble.gate]
    text = "The Torno Bridge"
    ids = post(client, "/tokenize", prompt=text, add_special_tokens=False)["tokens"]
    assert ids == ensemble.encode(text)
    assert post(client, "/detokenize", tokens=ids) == {"prompt": text}


def test_responses_are_as_documented(client):
    document = client.get("/openapi.json").json()
    bodies = {
        CHAT: {
            "messages": [{"role": "user", "content": "{document}"}],
            "documents": [{"text": "The Torno Bridge stands in Halkus.", "url": "https://handbook.example/1"}],
            "max_tokens": 2,
            "logprobs": True,
            "top_logprobs": 1,
        },
        TEXT: {"prompt": "a", "max_tokens": 2, "logprobs": 2},
        "/tokenize": {"prompt": "a"},
        "/detokenize": {"tokens": [40]},
        "/warm": {"prompt": "{document}", "documents": ["a"], "pin": False},
    }
    for path in ("/v1/models", "/health", "/ready", *bodies):
        [(method, operation)] = document["paths"][path].items()
        schema = operation["responses"]["200"]["content"]["application/json"]["schema"]
        answer = client.request(method, path, json=bodies.get(path)).json()
        jsonschema.validate(answer, {**schema, "components": document["components"]})


def leave(url: str, body: dict) -> None:
    """Sends a request as a client that disconnects after the first bytes of a stream, or soon."""
    sent = {"json": body, "headers": {"x-request-id": "left"}, "timeout": httpx.Timeout(10, read=0.03)}
    with suppress(httpx.ReadTimeout), httpx.stream("POST", url, **sent) as response:
        next(response.iter_raw())


@pytest.mark.parametrize("stream", [False, True])
def test_clients_that_leave_free_the_engine(both, stream):
    body = {"prompt": "a", "max_tokens": 400, "temperature": 0, "stream": stream}
    with running(Catalog({"both": both})) as server:
        leave(server.url + TEXT, body)
        record = server.record("left")
        assert (record.status, record.error, record.outputs) == (499, "client_closed_request", ())
        end = time.monotonic() + 10
        while both.health().requests and time.monotonic() < end:
            time.sleep(0.01)
        assert both.health().requests == 0


@pytest.mark.parametrize("large", [4, 64])
async def test_what_a_slow_reader_has_not_taken_is_joined(ensemble, monkeypatch, large):
    """The reader takes the head and then nothing until the answer is complete; nothing is lost."""
    monkeypatch.setattr(responses, "LARGE_ENTRIES", large)
    expected = ensemble.generate(QUESTION, max_tokens=10, logprobs=0)
    app = create_app(Catalog({"gac": ensemble}), ServerSettings(), [])
    body = {"messages": QUESTION, "max_tokens": 10, "temperature": 0, "stream": True, "logprobs": True}
    requests = [{"type": "http.request", "body": json.dumps(body).encode(), "more_body": False}]
    sent: list[bytes] = []

    async def receive():
        return requests.pop() if requests else await asyncio.Event().wait()

    async def send(message):
        sent.append(message.get("body", b""))
        if len(sent) == 3:
            while ensemble.health().requests:
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.05)

    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": CHAT, "query_string": b"", "headers": headers}
    await app({**scope, "root_path": "", "http_version": "1.1", "client": ("127.0.0.1", 1)}, receive, send)
    events = [line[6:] for body in sent for line in body.decode().splitlines() if line.startswith("data: {")]
    choices = [json.loads(event)["choices"][0] for event in events]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == expected.text
    tokens = [entry["token"] for choice in choices for entry in (choice["logprobs"] or {"content": []})["content"]]
    assert tokens == [item.token.decode() for item in expected.logprobs]
    assert len(events) <= 4 < len(tokens)
