"""SIGTERM to `gac serve` under load: what runs is finished or ends with an error, and nothing new is accepted."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress

import httpx
import pytest
import yaml
from conftest import EMBEDDED, LONG_PROMPT, ROOT
from rawhttp import RawConnection, events

pytestmark = pytest.mark.slow

CLIENTS = 24
BODY = {"temperature": 0, "drafts": False, "stream": True, "grammar": {"regex": "[a-z ]{2000}"}}


@contextmanager
def serving(tmp_path, drain):
    """The command in a process of its own; yields it and its URL once it is ready."""
    config = {"members": [{"model": folder, "dtype": "float32"} for folder in EMBEDDED], "max_batch_size": 8}
    (tmp_path / "gac.yaml").write_text(yaml.safe_dump(config))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-c", "from gac_core.cli import app; app()", "serve", str(tmp_path / "gac.yaml")]
    command += ["--port", str(port), "--drain-timeout", str(drain)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    url = f"http://127.0.0.1:{port}"
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=log, stderr=log)
    try:
        until = time.monotonic() + 120
        while not is_ready(url):
            ended = process.poll() is not None or time.monotonic() > until
            assert not ended, (tmp_path / "log").read_text()
            time.sleep(0.1)
        yield process, url
    finally:
        process.kill()
        process.wait()


def is_ready(url):
    try:
        return httpx.get(f"{url}/ready").status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("drain", [60, 1])
def test_sigterm_under_load(tmp_path, drain):
    tokens = 40 if drain > 1 else 900
    with serving(tmp_path, drain) as (process, url), ThreadPoolExecutor(CLIENTS) as threads, ExitStack() as stack:
        streams = [stack.enter_context(RawConnection(url, timeout=90)) for _ in range(CLIENTS)]
        for place, raw in enumerate(streams):
            raw.post("/v1/completions", {**BODY, "prompt": f"{LONG_PROMPT} {place}", "max_tokens": tokens})
        # Some run and the others wait.
        heads = [raw.response_head() for raw in streams[:4]]
        stack.enter_context(RawConnection(url))
        process.send_signal(signal.SIGTERM)
        began = time.monotonic()
        time.sleep(0.3)
        with suppress(httpx.TransportError):
            assert httpx.post(f"{url}/v1/completions", json={"prompt": "a"}, timeout=10).status_code == 503

        def rest(place):
            raw = streams[place]
            top = heads[place] if place < 4 else raw.response_head()
            assert top.status_code == 200
            return events(raw.rest(top).content)

        ends = [each[-1] for each in threads.map(rest, range(CLIENTS))]
        assert process.wait(90) == (0 if drain > 1 else 1), (tmp_path / "log").read_text()
        assert time.monotonic() - began < drain + 20
        assert "Traceback" not in (tmp_path / "log").read_text()
    if drain > 1:
        assert set(ends) == {"[DONE]"}
    else:
        errors = [json.loads(end)["error"] for end in ends if end != "[DONE]"]
        assert errors
        assert all(error["request_id"] and error["code"] in ("server_draining", "engine_closed") for error in errors)
