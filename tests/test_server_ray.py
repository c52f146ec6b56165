"""A member on Ray that is killed under load: its requests end or go on, none hangs, and the server is ready again."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from conftest import EMBEDDED, LONG_PROMPT
from holding import soon
from rawhttp import check_error, events
from server_fixture import served

from gac_core.server.catalog import Catalog
from gac_core.server.settings import ServerSettings

pytestmark = pytest.mark.ray

CLIENTS = 12
BODY = {"model": "gac", "max_tokens": 150, "temperature": 0, "drafts": False, "grammar": {"regex": "[a-z ]{2000}"}}
PROBE = {"model": "gac", "prompt": "Where", "max_tokens": 8, "temperature": 0}


def ask(url, place, begun):
    """Streams an answer, or asks for a whole one in every third place; returns status, headers and body."""
    body = {**BODY, "prompt": f"{LONG_PROMPT} {place}", "stream": place % 3 > 0}
    with httpx.stream("POST", f"{url}/v1/completions", json=body, timeout=60) as response:
        parts = []
        for part in response.iter_bytes():
            parts.append(part)
            begun.release()
        return response.status_code, response.headers, b"".join(parts)


def outcome(status, headers, content):
    """How an answer ended: whole, dropped, or an error that names the member."""
    if headers["content-type"].startswith("text/event-stream"):
        assert status == 200
        *_, before, last = events(content)
        told = json.loads(before if last == "[DONE]" else last)
        assert last == "[DONE]" or "error" in told
    else:
        told = json.loads(content)
    if "error" in told:
        error = check_error(told, headers["x-request-id"])
        assert error["code"] == "member_failed"
        assert "'birch'" in error["message"]
        assert status in (200, 503)
        return "error"
    return "dropped" if told["choices"][0]["gac"]["dropped"] else "whole"


@pytest.mark.parametrize("policy", [pytest.param("fail", marks=pytest.mark.slow), "drop"])
def test_a_member_that_is_killed_under_load(ray_nodes, policy):
    settings = {"forward_timeout": 5.0, "on_member_failure": policy}
    with (
        ray_nodes.load(EMBEDDED[:2], **settings) as one,
        served(Catalog({"gac": one}), ServerSettings()) as url,
        ThreadPoolExecutor(CLIENTS) as threads,
    ):
        wanted = httpx.post(f"{url}/v1/completions", json=PROBE, timeout=30).json()["choices"][0]["text"]
        begun = threading.Semaphore(0)
        answers = [threads.submit(ask, url, place, begun) for place in range(CLIENTS)]
        for _ in range(3 * CLIENTS):
            assert begun.acquire(timeout=30)
        os.kill(one._members[1].supervisor.process.facts.pid, signal.SIGKILL)
        killed = time.monotonic()
        status = "not ready" if policy == "fail" else "degraded"
        assert soon(lambda: httpx.get(f"{url}/ready").json()["status"] == status)
        assert "birch" in httpx.get(f"{url}/ready").text
        outcomes = [outcome(*answer.result(timeout=60)) for answer in answers]
        assert time.monotonic() - killed < 50
        assert set(outcomes) == {"error" if policy == "fail" else "dropped"}
        assert soon(lambda: httpx.get(f"{url}/ready").json()["status"] == "ready", 90)
        assert httpx.post(f"{url}/v1/completions", json=PROBE, timeout=30).json()["choices"][0]["text"] == wanted
