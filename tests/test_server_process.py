"""``gac serve`` in processes of their own: signals, the drain, and what is logged."""

from __future__ import annotations

import json
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress

import httpx
import pytest
import yaml
from app_client import KEYS
from conftest import EMBEDDED
from server_process import server_process

from gac_core import Grammar

PROMPT = "In which town is the Velgin Bridge?"
REGEX = "[a-z ]{2500,}"
BODY = {"model": "gac", "prompt": PROMPT, "grammar": {"regex": REGEX}, "temperature": 0, "stream": True}


@pytest.fixture
def config(tmp_path):
    """The path of a configuration of the three embedded members."""
    path = tmp_path / "gac.yaml"
    path.write_text(yaml.safe_dump({"members": [{"model": folder, "dtype": "float32"} for folder in EMBEDDED]}))
    return str(path)


class Streams:
    """Streams of one server, all of which have begun.

    Args:
        url: The server.
        count: How many.
        max_tokens: Length of each answer, in tokens.
        headers: Of the requests. Default none.
    """

    def __init__(self, url, count, max_tokens, headers=None):
        self._stack = ExitStack()
        client = self._stack.enter_context(httpx.Client(timeout=30, headers=headers))
        body = {**BODY, "max_tokens": max_tokens}
        with ThreadPoolExecutor(count) as threads:
            self._lines = list(threads.map(lambda number: self._open(client, url, body, number), range(count)))

    def _open(self, client, url, body, number):
        ids = {"x-request-id": f"stream-{number}"}
        response = self._stack.enter_context(client.stream("POST", f"{url}/v1/completions", json=body, headers=ids))
        assert response.status_code == 200
        lines = (line.removeprefix("data: ") for line in response.iter_lines() if line.startswith("data: "))
        return [next(lines), lines]

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self._stack.close()

    def ends(self):
        """The events of each stream, all read to their ends."""
        with ThreadPoolExecutor(len(self._lines)) as threads:
            return list(threads.map(lambda each: [each[0], *each[1]], self._lines))


def refusals(client, url):
    """Yields how requests are answered until the socket and the client's connections are closed."""
    with suppress(httpx.TransportError):
        while True:
            response = client.post(f"{url}/v1/completions", json=BODY)
            yield response.status_code, response.json()["error"]["code"]


def text(events):
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def test_requests_are_finished_after_sigterm(tmp_path, config, ensemble):
    keys = tmp_path / "keys"
    keys.write_text(KEYS[0])
    keys.chmod(0o600)
    key = {"authorization": f"Bearer {KEYS[0]}"}
    with server_process(tmp_path, config, f"two={config}", "--api-keys", str(keys)) as server:
        url = server.url
        with Streams(url, 4, 60, key) as streams, httpx.Client(headers=key) as kept:
            assert kept.get(f"{url}/ready").status_code == 200
            server.send(signal.SIGTERM)
            assert set(refusals(kept, url)) <= {(503, "server_draining")}
            ends = streams.ends()
            assert server.status(10) == 0
        assert server.stderr.count("\n") == 1
        assert server.stderr.startswith(
            "gac serve: gac: ash 1, birch 1, cedar 1 (gate ash, threshold none); two: ash 1, birch 1, cedar 1 (gate"
        )
        assert "(1 API key)" in server.stderr
        log, out = server.log, server.stdout
    assert {events[-1] for events in ends} == {"[DONE]"}
    expected = ensemble.generate(PROMPT, grammar=Grammar.regex(REGEX), max_tokens=60).text
    assert {text(events) for events in ends} == {expected}
    done = [line for line in log if line.get("event") == "request" and line["status"] == 200 and line["stream"]]
    assert sorted(line["request_id"] for line in done) == [f"stream-{number}" for number in range(4)]
    assert {(line["completion_tokens"], line["error"]) for line in done} == {(60, None)}
    assert "Velgin" not in out
    assert KEYS[0] not in out
    assert "ended with status 0" in log[-1]["message"]


def test_what_is_left_at_the_end_of_the_drain_ends_with_an_error(tmp_path, config):
    with server_process(tmp_path, config, "--drain-timeout", "0.2") as server:
        with Streams(server.url, 3, 900) as streams, ThreadPoolExecutor(1) as thread:
            plain = thread.submit(
                httpx.post,
                f"{server.url}/v1/completions",
                json={**BODY, "stream": False, "max_tokens": 900},
                timeout=30,
            )
            time.sleep(0.3)
            server.send(signal.SIGTERM)
            ends = streams.ends()
            response = plain.result()
        assert server.status(10) == 1
    for number, events in enumerate(ends):
        error = json.loads(events[-1])["error"]
        assert (error["code"], error["request_id"]) == ("engine_closed", f"stream-{number}")
    assert (response.status_code, response.json()["error"]["code"]) == (503, "engine_closed")


def test_a_second_signal_ends_the_process_at_once(tmp_path, config):
    with server_process(tmp_path, config) as server, Streams(server.url, 1, 900):
        server.send(signal.SIGINT)
        assert server.status(0.5) is None
        server.send(signal.SIGTERM)
        assert server.status(2) == 128 + signal.SIGTERM
        assert server.stderr.endswith("gac serve: ended by SIGTERM\n")


def test_a_forward_that_hangs_does_not_keep_the_process(tmp_path, config):
    with ExitStack() as stack:
        hanging = server_process(tmp_path, config, "--drain-timeout", "1", fault="hangs after 3 forwards")
        server = stack.enter_context(hanging)
        streams = stack.enter_context(Streams(server.url, 1, 900))
        server.send(signal.SIGTERM)
        began = time.monotonic()
        [events] = streams.ends()
        assert server.status(10) == 1
    assert time.monotonic() - began < 10
    error = json.loads(events[-1])["error"]
    assert (error["code"], error["request_id"]) == ("engine_closed", "stream-0")
    assert "'ash'" in error["message"]


def test_a_signal_while_models_load_ends_the_process(tmp_path, config):
    with server_process(tmp_path, config, fault="hangs while loading") as server:
        server.wait_for("loading")
        server.send(signal.SIGTERM)
        assert server.status(2) == 128 + signal.SIGTERM
