"""The server's protocol: answers equal those of the ensemble, and refusals name their field."""

from __future__ import annotations

import json

import httpx
import pytest
from conftest import LONG_PROMPT, QUESTION


@pytest.fixture(scope="module")
def client(server):
    with httpx.Client(base_url=server.url, timeout=60) as opened:
        yield opened


def events(response) -> list:
    """The values of a stream, the last of which must be the end mark."""
    lines = [line.removeprefix("data: ") for line in response.text.splitlines() if line.startswith("data: ")]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]


@pytest.mark.parametrize("sampling", [{"temperature": 0}, {"temperature": 0.8, "seed": 3}])
def test_a_chat_completion_equals_the_ensemble(client, ensemble, sampling):
    expected = ensemble.generate(QUESTION, max_tokens=12, **sampling)
    body = {"messages": QUESTION, "max_tokens": 12, **sampling}
    answer = client.post("/v1/chat/completions", json=body).json()
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert answer["choices"][0]["finish_reason"] == expected.finish_reason.value
    assert answer["usage"]["completion_tokens"] == expected.usage.completion_tokens
    chunks = events(client.post("/v1/chat/completions", json={**body, "stream": True}))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks) == expected.text
    assert chunks[-1]["choices"][0]["finish_reason"] == expected.finish_reason.value


def test_a_completion_equals_the_ensemble(client, ensemble):
    expected = ensemble.generate(LONG_PROMPT, max_tokens=8)
    body = {"prompt": LONG_PROMPT, "max_tokens": 8, "temperature": 0}
    answer = client.post("/v1/completions", json=body).json()
    assert answer["choices"][0]["text"] == expected.text
    chunks = events(client.post("/v1/completions", json={**body, "stream": True}))
    assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == expected.text


def test_models(client, ensemble):
    ids = [model["id"] for model in client.get("/v1/models").json()["data"]]
    assert ids == ["gac", *(f"gac/{name}" for name in ensemble.names)]
    assert client.get("/v1/models/gac/ash").json()["kind"] == "member"
    assert client.get("/ready").status_code == 200
    assert client.get("/health").status_code == 200
