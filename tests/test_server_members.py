"""Members that fail, hang or compute NaN while a server answers: errors with ids, and later requests are answered."""

from __future__ import annotations

import json

import httpx
import pytest
from architectures import random_model
from conftest import EMBEDDED, LONG_PROMPT, ensemble_of, random_pair, shared_ensemble
from faulty import fail_at, faulty_ensemble, healed
from holding import held, idle, soon
from rawhttp import RawConnection, check_error, check_refused, events
from server_fixture import served
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gac_core import EnsembleConfig, MemberConfig, SamplingParams
from gac_core.health import EnsembleHealth, MemberHealth
from gac_core.server.catalog import Catalog
from gac_core.server.errors import ApiError
from gac_core.server.generation.echo import echoes_of
from gac_core.server.generation.translate import Generation
from gac_core.server.routes.health import can_answer
from gac_core.server.settings import ServerSettings

TEXT = "/v1/completions"
BODY = {"model": "gac", "prompt": LONG_PROMPT, "max_tokens": 24, "temperature": 0, "drafts": False}
STATUS = {"raise": 500, "memory": 500, "nan": 500, "lost": 503, "hang": 503}


def served_alone(one):
    """A server of one ensemble."""
    return served(Catalog({"gac": one}), ServerSettings())


@pytest.fixture(scope="module")
def failing():
    with faulty_ensemble(forward_timeout=0.5) as (one, executor), served_alone(one) as url:
        yield one, executor, url


@pytest.fixture(scope="module")
def dropping():
    with faulty_ensemble(forward_timeout=0.5, on_member_failure="drop") as (one, executor), served_alone(one) as url:
        yield one, executor, url


def check_failure(told, response):
    """Asserts that an error names the member that failed."""
    error = check_error(told, response.headers["x-request-id"])
    assert error["code"] == "member_failed"
    assert "'m1'" in error["message"]


def text_of(response):
    """The text of a whole stream, and its last event."""
    *pieces, last = events(response.content)
    parts = [json.loads(each) for each in pieces]
    return "".join(choice["text"] for part in parts for choice in part.get("choices", [])), last


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("fault", STATUS)
def test_a_member_that_fails_ends_its_requests_with_an_error(failing, fault, stream):
    one, executor, url = failing
    want = one.generate(LONG_PROMPT, max_tokens=24).text
    fail_at(one, executor, "m1", 5, fault)
    response = httpx.post(url + TEXT, json={**BODY, "stream": stream}, timeout=20)
    assert executor.given[0] == fault
    if stream:
        assert response.status_code == 200
        text, last = text_of(response)
        check_failure(json.loads(last), response)
        assert want.startswith(text)
        assert text
    else:
        assert response.status_code == STATUS[fault]
        check_failure(response.json(), response)
        assert ("retry-after" in response.headers) is (response.status_code == 503)
    healed(executor)
    assert idle(one)
    assert soon(lambda: httpx.get(url + "/ready").status_code == 200)
    again = httpx.post(url + TEXT, json=BODY, timeout=20)
    assert again.json()["choices"][0]["text"] == want


@pytest.mark.parametrize("fault", STATUS)
def test_a_stream_goes_on_without_a_dropped_member(dropping, fault):
    one, executor, url = dropping
    fail_at(one, executor, "m1", 5, fault)
    response = httpx.post(url + TEXT, json={**BODY, "stream": True}, timeout=20)
    text, last = text_of(response)
    assert last == "[DONE]"
    (dropped,) = json.loads(events(response.content)[-2])["choices"][0]["gac"]["dropped"]
    assert dropped["member"] == "m1"
    assert dropped["at_token"] >= 5
    assert text
    healed(executor)
    assert soon(lambda: httpx.get(url + "/ready").json()["status"] == "ready")


@pytest.mark.parametrize(("policy", "ready"), [("fail", (503, "not ready")), ("drop", (200, "degraded"))])
def test_a_server_without_one_member_is_ready_if_it_answers(policy, ready):
    settings = {"forward_timeout": 0.3, "on_member_failure": policy}
    with shared_ensemble(EMBEDDED[:2], **settings) as one, served_alone(one) as url:
        with held(one, index=1):
            response = httpx.post(url + TEXT, json=BODY, timeout=20)
            assert response.status_code == (503 if policy == "fail" else 200)
            found = httpx.get(url + "/ready")
            assert (found.status_code, found.json()["status"]) == ready
            assert found.json()["ensembles"]["gac"]["members"]["birch"]["state"] == "hung"
        assert soon(lambda: httpx.get(url + "/ready").json()["status"] == "ready")


@pytest.mark.parametrize(
    ("settings", "lost", "ready"),
    [
        ({}, "b", False),
        ({"on_member_failure": "drop"}, "b", True),
        ({"on_member_failure": "drop"}, "ab", True),
        ({"on_member_failure": "drop"}, "abc", False),
        ({"on_member_failure": "drop", "min_members": 2}, "b", True),
        ({"on_member_failure": "drop", "min_members": 2}, "bc", False),
        ({"on_member_failure": "drop", "gate_must_live": True, "threshold": 0.5}, "b", True),
        ({"on_member_failure": "drop", "gate_must_live": True, "threshold": 0.5}, "a", False),
        ({"on_member_failure": "drop", "gate_must_live": True}, "a", True),
    ],
)
def test_an_ensemble_is_ready_while_requests_are_answered(settings, lost, ready):
    config = EnsembleConfig(members=tuple(MemberConfig(name) for name in "abc"), **settings)
    members = tuple(MemberHealth(name, name, "lost" if name in lost else "ready") for name in "abc")
    assert can_answer(config, "a", EnsembleHealth(False, "lost", members)) is ready
    assert not can_answer(config, "a", EnsembleHealth(False, "stuck", members, step_seconds=1e6))


@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_with_several_choices_is_one_error(failing, stream):
    one, executor, url = failing
    fail_at(one, executor, "m1", 5)
    response = httpx.post(url + TEXT, json={**BODY, "n": 3, "stream": stream}, timeout=20)
    if stream:
        last = [json.loads(each) for each in events(response.content) if "error" in json.loads(each)]
        (told,) = last
        check_failure(told, response)
        assert events(response.content)[-1] != "[DONE]"
    else:
        assert response.status_code == 500
        check_failure(response.json(), response)
    healed(executor)
    assert idle(one)


@pytest.mark.parametrize("stream", [False, True])
def test_a_stuck_engine_refuses(stream):
    with shared_ensemble(EMBEDDED, stuck_after=0.2) as one, served_alone(one) as url:
        with held(one) as waiting, RawConnection(url) as running:
            running.post(TEXT, {**BODY, "stream": True})
            assert waiting.wait(10)
            assert soon(lambda: httpx.get(url + "/health").status_code == 503)
            response = httpx.post(url + TEXT, json={**BODY, "stream": stream}, timeout=10)
            assert check_refused(response, 503)["code"] == "engine_stuck"
        assert soon(lambda: httpx.get(url + "/health").status_code == 200)
        assert idle(one)


async def test_a_prompt_that_the_gate_cannot_write_is_refused():
    """A gate of a few words cannot score other words; that is no failure of a member."""
    words = {"<end>": 0, "<unk>": 1, "Who": 2}
    named = {"eos_token": "<end>", "unk_token": "<unk>", "bos_token": "<end>"}
    few = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), **named)
    with ensemble_of([(random_model("llama", few), few), random_pair("llama")]) as one:
        served = Catalog({"gac": one}).find(None)
        asked = Generation(served, ("Where",), SamplingParams(logprobs=0, gate="m0"), "prompt", echo=True)
        with pytest.raises(ApiError) as caught:
            await echoes_of(asked, "mine")
    assert (caught.value.status, caught.value.code, caught.value.param) == (400, "invalid_value", "prompt")
