"""Clients that leave, half-close, or read nothing, and too many at once."""

from __future__ import annotations

import asyncio
import json
import threading
import time

import httpx
import pytest
from conftest import EMBEDDED, LONG_PROMPT, shared_ensemble
from holding import busy, held, idle
from rawhttp import RawConnection, check_error, check_refused, encoded, events, head
from server_fixture import SHORT, running, served

from gac_core.server.catalog import Catalog
from gac_core.server.routes import bodies
from gac_core.server.settings import ServerSettings

TEXT = "/v1/completions"
ENDLESS = {
    "model": "gac",
    "prompt": LONG_PROMPT,
    "max_tokens": 600,
    "temperature": 0,
    "stream": True,
    "grammar": {"regex": "[a-z ]{2000}"},
}

pytestmark = pytest.mark.usefixtures("works_afterwards")


@pytest.fixture(scope="module")
def small():
    """Four requests run at most, and four wait."""
    with shared_ensemble(EMBEDDED, max_batch_size=4, max_queue=4) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def url(ensemble, small):
    with served(Catalog({"gac": ensemble, "small": small}), ServerSettings()) as base:
        yield base


# ---- clients that leave or do not read


@pytest.mark.parametrize("choices", [1, 3])
@pytest.mark.parametrize("when", ["queued", "before the first token", "in the middle"])
def test_clients_that_leave_free_the_engine(url, ensemble, when, choices):
    body = {**ENDLESS, "n": choices}
    if when == "in the middle":
        with RawConnection(url) as raw:
            raw.post(TEXT, body)
            assert raw.response_head().status_code == 200
            while not raw.line().startswith(b"data: "):
                pass
    else:
        with held(ensemble) as waiting:
            # The first one waits in a forward; a later one in the mailbox.
            with RawConnection(url) as first, RawConnection(url) as second:
                for raw in (first, second)[: 1 + (when == "queued")]:
                    raw.post(TEXT, body)
                    assert waiting.wait(10)
                    assert raw.response_head().status_code == 200
            time.sleep(0.1)
    assert idle(ensemble)


def test_a_plain_request_that_is_given_up_frees_the_engine(url, ensemble):
    with RawConnection(url) as raw:
        raw.post(TEXT, {**ENDLESS, "stream": False})
        assert busy(ensemble)
    assert idle(ensemble)


def test_a_half_closed_socket_is_answered_or_freed(url, ensemble, short_text):
    with RawConnection(url) as raw:
        raw.post(TEXT, SHORT)
        raw.socket.shutdown(1)
        line = raw.line()
        assert line == b"" or line.startswith(b"HTTP/1.1 200")
    with RawConnection(url) as raw:
        raw.post(TEXT, ENDLESS)
        assert busy(ensemble)
        raw.socket.shutdown(1)
        assert raw.ended()
    assert idle(ensemble)


def test_a_reader_that_takes_nothing_is_disconnected(ensemble, short_text):
    body = {**ENDLESS, "logprobs": 5, "n": 4}
    settings = ServerSettings(send_timeout=0.5)
    with (
        running(Catalog({"gac": ensemble}), settings, send_bytes=8192) as server,
        RawConnection(server.url, receive_bytes=4096) as raw,
    ):
        raw.send(head("POST", TEXT, body, x_request_id="slow") + encoded(body))
        assert busy(ensemble)
        began = time.monotonic()
        answer = httpx.post(server.url + TEXT, json=SHORT, timeout=10)
        assert answer.json()["choices"][0]["text"] == short_text
        assert time.monotonic() - began < 3
        record = server.record("slow", 20)
        assert (record.status, record.error) == (499, "client_closed_request")
        assert record.outputs == ()
        # The connection ends although the client takes nothing of what is buffered.
        end = time.monotonic() + 10
        while server.connections and time.monotonic() < end:
            time.sleep(0.01)
        assert not server.connections
    assert idle(ensemble)


def test_large_bodies_wait_for_each_other_alone(ensemble, short_text):
    free = threading.Event()
    with running(Catalog({"gac": ensemble})) as server:
        blocked = [bodies._large.submit(free.wait) for _ in range(2)]
        try:
            with RawConnection(server.url) as raw:
                large = {"prompt": "a " * 30_000}
                raw.send(head("POST", "/tokenize", large, x_request_id="large") + encoded(large))
                answer = httpx.post(server.url + TEXT, json=SHORT, timeout=10)
                assert answer.json()["choices"][0]["text"] == short_text
                few = httpx.post(server.url + "/tokenize", json={"prompt": "a"}, timeout=10)
                assert few.json()["count"] >= 1
                assert server.records[-1].request_id != "large"
            # Given up while it waits, it is dropped.
            assert server.record("large").status == 499
        finally:
            free.set()
        assert all(each.result(10) for each in blocked)


def test_a_timeout_passes_while_the_engine_is_held(url, ensemble):
    with held(ensemble):
        for stream in (False, True):
            response = httpx.post(url + TEXT, json={**ENDLESS, "timeout": 0.2, "stream": stream}, timeout=10)
            if stream:
                error = check_error(json.loads(events(response.content)[-1]), response.headers["x-request-id"])
            else:
                error = check_refused(response, 504)
            assert error["code"] == "request_timeout"


# ---- too many at once


async def test_200_connections_over_a_queue_of_four(url, small):
    prompts = [f"Where is bridge {place}?" for place in range(200)]
    limits = httpx.Limits(max_connections=None)
    async with httpx.AsyncClient(base_url=url, timeout=60, limits=limits) as client:

        async def ask(place):
            body = {**SHORT, "model": "small", "prompt": prompts[place], "stream": place % 2 == 0}
            return place, await client.post(TEXT, json=body)

        with held(small) as waiting:
            tasks = [asyncio.create_task(ask(place)) for place in range(200)]
            done: set = set()
            while len(done) < 192:
                finished, _ = await asyncio.wait(tasks, timeout=0.05)
                done = finished
                assert waiting.is_set() or not done
        answers = await asyncio.gather(*tasks)
    accepted = [(place, answer) for place, answer in answers if answer.status_code == 200]
    assert 1 <= len(accepted) <= 8
    want = small.generate_batch([prompts[place] for place, _ in accepted[:4]], max_tokens=4)
    for (place, answer), output in zip(accepted, want, strict=False):
        if place % 2:
            assert answer.json()["choices"][0]["text"] == output.text
        else:
            pieces = [json.loads(each) for each in events(answer.content)[:-1]]
            assert "".join(each["choices"][0]["text"] for each in pieces if each["choices"]) == output.text
    for _, answer in answers:
        if answer.status_code != 200:
            assert check_refused(answer, 429)["code"] == "queue_full"
            assert int(answer.headers["retry-after"]) >= 1
