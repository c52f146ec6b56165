"""The `openai` package against a server of the embedded members."""

from __future__ import annotations

import json

import httpx
import openai
import pytest
from conftest import LONG_PROMPT, QUESTION
from openai import OpenAI
from server_fixture import served

from gac_core import Grammar
from gac_core.server.catalog import Catalog
from gac_core.server.settings import ServerSettings

GREEDY = {"model": "gac", "temperature": 0}


@pytest.fixture(scope="module")
def url(ensemble, talkers):
    with served(Catalog({"gac": ensemble, "talkers": talkers}), ServerSettings()) as base:
        yield f"{base}/v1"


@pytest.fixture(scope="module")
def client(url):
    with OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60) as made:
        yield made


# ---- chat


def test_a_chat_is_the_ensembles_answer(client, ensemble):
    output = ensemble.generate(QUESTION, max_tokens=16)
    answer = client.chat.completions.create(messages=QUESTION, max_tokens=16, **GREEDY)
    assert answer.object == "chat.completion"
    assert answer.model == "gac"
    (choice,) = answer.choices
    assert choice.message.role == "assistant"
    assert choice.message.content == output.text != ""
    assert choice.message.refusal is None
    assert not choice.message.tool_calls
    assert choice.finish_reason == output.finish_reason.value
    assert answer.usage.prompt_tokens == output.usage.prompt_tokens
    assert answer.usage.completion_tokens == output.usage.completion_tokens
    assert answer.usage.total_tokens == output.usage.total_tokens
    assert answer.usage.completion_tokens_details.reasoning_tokens == 0
    assert answer.usage.prompt_tokens_details.cached_tokens <= answer.usage.prompt_tokens
    assert choice.model_extra["gac"]["gate"] == ensemble.gate


def test_a_stream_is_the_answer_in_pieces(client):
    asked = {"messages": QUESTION, "max_tokens": 16, **GREEDY}
    whole = client.chat.completions.create(**asked)
    chunks = list(client.chat.completions.create(stream=True, stream_options={"include_usage": True}, **asked))
    assert len({chunk.id for chunk in chunks}) == 1
    assert {chunk.object for chunk in chunks} == {"chat.completion.chunk"}
    assert chunks[0].choices[0].delta.role == "assistant"
    *pieces, last = chunks
    assert last.choices == []
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert all(chunk.usage is None for chunk in pieces)
    assert "".join(chunk.choices[0].delta.content or "" for chunk in pieces) == whole.choices[0].message.content
    reasons = [chunk.choices[0].finish_reason for chunk in pieces]
    assert reasons[-1] == whole.choices[0].finish_reason
    assert set(reasons[:-1]) == {None}
    assert len(pieces) > 4
    plain = list(client.chat.completions.create(stream=True, **asked))
    assert all(chunk.choices and chunk.usage is None for chunk in plain)


def test_the_stream_helper_accumulates(client):
    asked = {"messages": QUESTION, "max_tokens": 16, "logprobs": True, "top_logprobs": 2, **GREEDY}
    with client.chat.completions.stream(**asked) as stream:
        events = list(stream)
        final = stream.get_final_completion()
    whole = client.chat.completions.create(**asked)
    assert final.choices[0].message.content == whole.choices[0].message.content
    assert [event.type for event in events].count("content.done") == 1
    (done,) = [event for event in events if event.type == "logprobs.content.done"]
    assert [each.token for each in done.content] == [each.token for each in whole.choices[0].logprobs.content]


@pytest.mark.parametrize("how", ["create", "stream"])
def test_choices_of_one_prompt(client, talkers, how):
    asked = {"model": "talkers", "messages": QUESTION, "max_tokens": 8, "temperature": 1.0, "seed": 5, "n": 3}
    want = [each.text for each in talkers.generate_choices(QUESTION, max_tokens=8, temperature=1.0, seed=5, n=3)]
    assert len(set(want)) == 3
    if how == "create":
        answer = client.chat.completions.create(**asked)
        texts = [choice.message.content for choice in answer.choices]
        assert [choice.index for choice in answer.choices] == [0, 1, 2]
        assert answer.usage.completion_tokens == 24
    else:
        texts, ends = ["", "", ""], []
        for chunk in client.chat.completions.create(stream=True, **asked):
            for choice in chunk.choices:
                texts[choice.index] += choice.delta.content or ""
                ends += [choice.index] if choice.finish_reason else []
        assert sorted(ends) == [0, 1, 2]
    assert texts == want


def test_log_probabilities(client, ensemble):
    output = ensemble.generate(QUESTION, max_tokens=6, logprobs=3)
    answer = client.chat.completions.create(messages=QUESTION, max_tokens=6, logprobs=True, top_logprobs=3, **GREEDY)
    content = answer.choices[0].logprobs.content
    written = [entry for entry in output.logprobs if entry.token]
    assert [bytes(each.bytes) for each in content][: len(written)] == [entry.token for entry in written]
    for each, entry in zip(content, written, strict=False):
        assert each.logprob == pytest.approx(entry.logprob, abs=1e-4)
        assert [bytes(top.bytes) for top in each.top_logprobs] == [token for token, _ in entry.top]
    bare = client.chat.completions.create(messages=QUESTION, max_tokens=6, logprobs=True, **GREEDY)
    assert all(each.top_logprobs == [] for each in bare.choices[0].logprobs.content)
    assert client.chat.completions.create(messages=QUESTION, max_tokens=2, **GREEDY).choices[0].logprobs is None


def test_sampling_fields_reach_the_engine(client, talkers, ensemble):
    asked = {"temperature": 0.8, "top_p": 0.9, "seed": 7}
    want = talkers.generate(QUESTION, max_tokens=12, **asked).text
    answer = client.chat.completions.create(model="talkers", messages=QUESTION, max_completion_tokens=12, **asked)
    assert answer.choices[0].message.content == want
    assert answer.choices[0].finish_reason == "length"
    cut = client.chat.completions.create(model="talkers", messages=QUESTION, max_tokens=12, stop=[want[3:5]], **asked)
    assert cut.choices[0].message.content == want[: want.index(want[3:5])]
    assert cut.choices[0].finish_reason == "stop"
    penalties = {"presence_penalty": 2.0, "frequency_penalty": 2.0}
    letters = Grammar.regex("[a-c]{20}")
    want = ensemble.generate("a", max_tokens=12, grammar=letters, **penalties).text
    assert want != ensemble.generate("a", max_tokens=12, grammar=letters).text
    extra = {"grammar": {"regex": "[a-c]{20}"}}
    penalised = client.completions.create(prompt="a", max_tokens=12, extra_body=extra, **penalties, **GREEDY)
    assert penalised.choices[0].text == want


def test_a_bias_by_ids_of_the_tokenize_route(client, url, ensemble):
    before = client.completions.create(prompt=LONG_PROMPT, max_tokens=1, **GREEDY).choices[0].text
    ids = httpx.post(f"{url.removesuffix('/v1')}/tokenize", json={"model": "gac", "prompt": before}).json()["tokens"]
    assert ids == ensemble.encode(before)
    banned = client.completions.create(prompt=LONG_PROMPT, max_tokens=1, logit_bias={str(ids[0]): -100}, **GREEDY)
    assert banned.choices[0].text != before
    want = ensemble.generate(LONG_PROMPT, max_tokens=1, logit_bias={ids[0]: -100})
    assert banned.choices[0].text == want.text


def test_own_fields_travel_in_the_extra_body(client, ensemble):
    extra = {"threshold": 0.3, "gate": "birch", "combine": "arithmetic", "weights": {"ash": 2.0}, "trace": True}
    settings = {key: value for key, value in extra.items() if key != "trace"}
    want = ensemble.generate(QUESTION, max_tokens=12, **settings)
    answer = client.chat.completions.create(messages=QUESTION, max_tokens=12, extra_body=extra, **GREEDY)
    assert answer.choices[0].message.content == want.text
    said = answer.choices[0].model_extra["gac"]
    assert (said["threshold"], said["gate"]) == (0.3, "birch")
    assert said["steps_ensembled"] == want.stats.steps_ensembled
    assert len(said["token_stats"]) == want.stats.steps + want.stats.forced
    digits = client.chat.completions.create(
        messages=QUESTION, max_tokens=12, extra_body={"grammar": {"regex": "[0-9]{4}"}}, **GREEDY
    )
    assert digits.choices[0].message.content == ensemble.generate(QUESTION, grammar=Grammar.regex("[0-9]{4}")).text


def test_the_developer_role_and_parts_of_text(client, ensemble):
    system, user = QUESTION
    parts = [{"type": "text", "text": user["content"][:20]}, {"type": "text", "text": user["content"][20:]}]
    messages = [{"role": "developer", "content": system["content"]}, {"role": "user", "content": parts}]
    answer = client.chat.completions.create(messages=messages, max_tokens=12, **GREEDY)
    assert answer.choices[0].message.content == ensemble.generate(QUESTION, max_tokens=12).text


# ---- completions, models, raw responses


def test_completions(client, ensemble):
    output = ensemble.generate(LONG_PROMPT, max_tokens=8)
    answer = client.completions.create(prompt=LONG_PROMPT, max_tokens=8, **GREEDY)
    assert answer.object == "text_completion"
    assert answer.choices[0].text == output.text
    streamed = client.completions.create(prompt=LONG_PROMPT, max_tokens=8, stream=True, **GREEDY)
    assert "".join(chunk.choices[0].text for chunk in streamed if chunk.choices) == output.text
    two = client.completions.create(prompt=[LONG_PROMPT, "Where"], max_tokens=8, **GREEDY)
    assert [choice.index for choice in two.choices] == [0, 1]
    assert [choice.text for choice in two.choices] == [output.text, ensemble.generate("Where", max_tokens=8).text]
    echoed = client.completions.create(prompt=LONG_PROMPT, max_tokens=2, logprobs=2, **GREEDY)
    assert len(echoed.choices[0].logprobs.tokens) >= 1


def test_models(client, ensemble):
    ids = [model.id for model in client.models.list()]
    assert ids[:4] == ["gac", "gac/ash", "gac/birch", "gac/cedar"]
    assert client.models.retrieve("gac").id == "gac"
    assert client.models.retrieve("gac/birch").object == "model"
    alone = client.chat.completions.create(model="gac/birch", messages=QUESTION, max_tokens=12, temperature=0)
    assert (
        alone.choices[0].message.content == ensemble.generate(QUESTION, max_tokens=12, gate="birch", threshold=0).text
    )
    with pytest.raises(openai.NotFoundError) as error:
        client.models.retrieve("nope")
    assert error.value.code == "model_not_found"


def test_raw_and_streaming_responses(client):
    asked = {"messages": QUESTION, "max_tokens": 4, **GREEDY}
    raw = client.chat.completions.with_raw_response.create(extra_headers={"x-request-id": "mine-1"}, **asked)
    assert raw.request_id == raw.headers["x-request-id"] == "mine-1"
    whole = raw.parse()
    assert whole._request_id == "mine-1"
    with client.chat.completions.with_streaming_response.create(stream=True, **asked) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert response.request_id
        lines = [line for line in response.iter_lines() if line.startswith("data: ")]
    assert lines[-1] == "data: [DONE]"
    text = "".join(
        choice["delta"].get("content") or "" for line in lines[:-1] for choice in json.loads(line[6:])["choices"]
    )
    assert text == whole.choices[0].message.content


# ---- errors


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"extra_body": {"nonsense": 1}}, "nonsense"),
        ({"extra_body": {"gate": "oak"}}, "gate"),
        ({"modalities": ["audio"]}, "modalities[0]"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"tool_choice": "required"}, "tool_choice"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_wrong_fields_are_named(client, fields, param, stream):
    with pytest.raises(openai.BadRequestError) as error:
        client.chat.completions.create(**{"messages": QUESTION, "stream": stream, **GREEDY, **fields})
    assert error.value.param == param
    assert error.value.request_id == error.value.body["request_id"]
    assert error.value.type == "invalid_request_error"


def test_unknown_models_and_long_prompts(client):
    with pytest.raises(openai.NotFoundError) as error:
        client.chat.completions.create(model="gpt-4o", messages=QUESTION)
    assert error.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match="context") as error:
        client.completions.create(model="gac", prompt="passages " * 2000)
    assert error.value.code == "context_length_exceeded"
    with pytest.raises(openai.BadRequestError):
        client.chat.completions.create(model="gac", messages=[])
