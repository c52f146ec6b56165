"""Limits of bodies and connections, and the command line of ``gac serve``."""

from __future__ import annotations

import asyncio
import functools
import json
import logging
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path

import httpx
import pytest
from app_client import KEYS, AppClient, assert_error
from typer.testing import CliRunner

from gac_core.cli import app as command
from gac_core.cli.serve import named_configurations
from gac_core.server.access.auth import digest
from gac_core.server.lifecycle import connections
from gac_core.server.lifecycle.draining_server import Closing, DrainingServer

ROOT = Path(__file__).parent.parent


@pytest.fixture
def serving(ensemble):
    """Makes clients of applications with settings."""
    return functools.partial(AppClient, ensemble)


async def test_large_bodies_are_refused(serving):
    client = serving(max_body_bytes=1000)

    async def chunks():
        for _ in range(11):
            yield b"x" * 100

    assert_error(await client.post("/v1/completions", content=b"x" * 1001), 413, "body_too_large")
    assert_error(await client.post("/v1/completions", content=chunks()), 413, "body_too_large")
    body = json.dumps({"prompt": "In", "max_tokens": 1, "user": ""})
    body = body.replace('""', json.dumps("x" * (1000 - len(body))))
    headers = {"content-type": "application/json"}
    assert len(body) == 1000
    assert (await client.post("/v1/completions", content=body, headers=headers)).status_code == 200


async def test_keys_are_checked_before_a_body_is_read(serving):
    client = serving(max_body_bytes=10, api_keys=(digest(KEYS[0]),))
    assert (await client.post("/v1/completions", content=b"x" * 11)).status_code == 401


async def test_slow_bodies_are_refused(serving):
    client = serving(body_timeout=0.05)

    async def slow():
        while True:
            yield b" "
            await asyncio.sleep(0.01)

    response = await client.post("/v1/completions", content=slow())
    assert_error(response, 408, "body_timeout")
    assert response.headers["connection"] == "close"


# ---- connections


@asynccontextmanager
async def listening(app, drain_timeout=5.0):
    """Serves an application on a free port; yields the server and its port."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = DrainingServer(app, drain_timeout, Closing([]), lambda: None)
    running = asyncio.create_task(server.serve([bound]))
    while not server.started:
        await asyncio.sleep(0.001)
    try:
        yield server, bound.getsockname()[1]
    finally:
        server.begin_drain()
        await running


async def exchanged(port, *parts, pause=0.0):
    """Sends parts of a request; returns what is received until the connection is closed, and how long that took."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    began = time.monotonic()
    for part in parts:
        writer.write(part)
        await writer.drain()
        await asyncio.sleep(pause)
    try:
        return await asyncio.wait_for(reader.read(), 5), time.monotonic() - began
    finally:
        writer.close()


HEAD = b"GET /health HTTP/1.1\r\nhost: localhost\r\n"


async def refusal(port, *parts, pause=0.0):
    """The status and code of what is refused before it is a request; the connection is closed."""
    received, _ = await exchanged(port, *parts, pause=pause)
    head, _, body = received.partition(b"\r\n\r\n")
    error = json.loads(body)["error"]
    assert f"x-request-id: {error['request_id']}\r\n".encode() in head
    return int(head.split()[1]), error["code"]


async def test_connections_are_limited(serving, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    async with listening(serving(max_body_bytes=1000).app) as (_, port):
        received, _ = await exchanged(port, HEAD + b"connection: close\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 200")
        many = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 1000) for number in range(70))
        assert await refusal(port, HEAD + many + b"\r\n") == (431, "headers_too_large")
        endless = [HEAD + b"x: ", *[b"a" * 16384] * 5]
        assert await refusal(port, *endless, pause=0.01) == (431, "headers_too_large")
        assert await refusal(port, b"\x16\x03\x01\x02\x00\x01") == (400, "invalid_http")
        received, seconds = await exchanged(port, HEAD)
        assert (received, seconds < 2) == (b"", True)
        received, seconds = await exchanged(port)
        assert (received, seconds < 2) == (b"", True)


async def test_idle_connections_are_closed_whatever_their_clients_send(serving, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    large = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2000\r\n\r\n"
    async with listening(serving(max_body_bytes=1000).app) as (_, port):
        for parts in ((HEAD + b"\r\n", b"\r\n"), (large, b"x" * 2000)):
            received, seconds = await exchanged(port, *parts, pause=0.05)
            assert received.count(b"HTTP/1.1 ") == 1
            assert seconds < 2


async def test_a_client_that_takes_nothing_does_not_keep_its_connection(serving, monkeypatch):
    monkeypatch.setattr(connections, "CLOSE_SECONDS", 0.2)
    began = time.monotonic()
    async with listening(serving().app) as (server, port):
        server.servers[0].sockets[0].setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1)
        with socket.socket() as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)
            client.connect(("127.0.0.1", port))
            client.sendall(HEAD.replace(b"/health", b"/metrics") + b"\r\n")
            while not server.server_state.total_requests:
                await asyncio.sleep(0.01)
            server.begin_drain()
            while server.server_state.connections:
                await asyncio.sleep(0.01)
    assert time.monotonic() - began < 5


async def test_requests_to_upgrade_are_answered_in_http_1(serving):
    body = json.dumps({"prompt": "In", "max_tokens": 1}).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    head += b"content-length: %d\r\n" % len(body)
    upgrade = b"connection: Upgrade, HTTP2-Settings\r\nupgrade: h2c\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n"
    last = head + b"connection: close\r\n\r\n" + body
    async with listening(serving().app) as (_, port):
        for parts in (
            (head + upgrade + b"\r\n" + body + last,),
            (head + upgrade[:30], upgrade[30:] + b"\r\n", body[:5], body[5:], last),
        ):
            received, _ = await exchanged(port, *parts, pause=0.01)
            assert received.count(b"HTTP/1.1 200") == 2


async def test_many_upgrades_at_once_and_tunnels_end(serving):
    upgrade = HEAD + b"connection: Upgrade\r\nupgrade: h2c\r\n\r\n"
    async with listening(serving().app) as (_, port):
        received, _ = await exchanged(port, upgrade * 1500 + HEAD + b"connection: close\r\n\r\n")
        assert received.count(b"HTTP/1.1 200") == 1501
        tunnel = b"CONNECT example.org:80 HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
        received, _ = await exchanged(port, tunnel)
        assert received.startswith(b"HTTP/1.1 4")


async def test_no_refusal_is_sent_within_a_response(serving):
    body = json.dumps({"prompt": "In", "grammar": {"regex": "[a-z ]{2000}"}, "max_tokens": 900, "stream": True})
    head = "POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    client = serving()
    async with listening(client.app) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(f"{head}content-length: {len(body)}\r\n\r\n{body}".encode())
        received = await reader.readuntil(b"data: ")
        writer.write(b"\x00 no request\r\n\r\n")
        received += await reader.read()
        writer.close()
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"[DONE]" not in received
    assert [record.status for record in client.records] == [499]


async def test_bodies_of_probes_are_not_read(serving):
    async with listening(serving(api_keys=(digest(KEYS[0]),)).app) as (_, port):
        received, _ = await exchanged(port, HEAD + b"connection: close\r\ncontent-length: 4000000\r\n\r\n")
    assert received.startswith(b"HTTP/1.1 200")


def test_threads_that_hang_do_not_delay_the_end(serving):
    app, free = serving().app, threading.Event()

    @app.get("/v1/hang")
    async def hang():
        await asyncio.to_thread(free.wait)

    bound = socket.create_server(("127.0.0.1", 0))
    port = bound.getsockname()[1]
    server = DrainingServer(app, 0.0, Closing([]), lambda: None)
    server.config.timeout_graceful_shutdown = 1
    running = threading.Thread(target=server.run, args=([bound],))
    running.start()
    try:
        with ThreadPoolExecutor(1) as client:
            asked = client.submit(httpx.get, f"http://127.0.0.1:{port}/v1/hang", timeout=10)
            while not server.server_state.tasks:
                time.sleep(0.01)
            server.begin_drain()
            running.join(5)
            assert not running.is_alive()
            assert_error(asked.result(), 503, "server_stopped")
    finally:
        free.set()
        running.join()


async def test_a_client_that_sends_a_large_body_reads_the_refusal(serving):
    async with listening(serving(max_body_bytes=1000).app) as (_, port), httpx.AsyncClient() as client:
        for _ in range(2):
            response = await client.post(f"http://127.0.0.1:{port}/v1/completions", content=b"x" * 2**23)
            assert_error(response, 413, "body_too_large")
        head = (
            b"POST /v1/completions HTTP/1.1\r\nhost: localhost\r\ncontent-length: 2000\r\nexpect: 100-continue\r\n\r\n"
        )
        received, _ = await exchanged(port, head)
        assert received.startswith(b"HTTP/1.1 413")


# ---- the command


@pytest.fixture
def invoke(monkeypatch):
    """Runs ``gac serve``; returns its exit status and what it wrote to stderr. Logs and signals are as before."""
    root, kept = logging.getLogger(), list(logging.getLogger().handlers)
    levels = {name: logging.getLogger(name).level for name in ("", "gac_core", "uvicorn", "transformers")}
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.delenv("GAC_API_KEYS", raising=False)

    def run(*arguments):
        result = CliRunner().invoke(command, ["serve", *map(str, arguments)])
        return result.exit_code, result.stderr

    yield run
    root.handlers = kept
    for name, level in levels.items():
        logging.getLogger(name).setLevel(level)
    logging.captureWarnings(False)
    for number, handler in handlers.items():
        signal.signal(number, handler)


def test_errors_of_the_command_are_one_line(invoke, tmp_path):
    wrong, good = tmp_path / "wrong.yaml", ROOT / "examples" / "ensemble.yaml"
    wrong.write_text("members: [a]\nthreshould: 0.5\n")
    with socket.create_server(("127.0.0.1", 0)) as used:
        port = used.getsockname()[1]
        for arguments, message in (
            ([wrong], "threshould"),
            ([tmp_path / "none.yaml"], "none.yaml"),
            ([good, good], "two ensembles are called 'ensemble'"),
            ([good, "some/model"], "give either YAML files"),
            ([f"a/b={good}"], "without a slash"),
            ([good, "--host", "0.0.0.0"], "--allow-unauthenticated"),
            ([good, "--port", port], f"port={port}: Address already in use"),
            ([good, "--host", "no-such-host.invalid", "--allow-unauthenticated"], "cannot listen on"),
            ([good, "--api-keys", tmp_path / "none"], "cannot read the API keys"),
            ([good, "--log-level", "loud"], "log_level"),
            (["gac=examples/models/ash"], "only YAML files take NAME="),
            (["pyproject.toml"], "this is a file; a model is a folder"),
        ):
            status, shown = invoke(*arguments)
            assert (status, shown.count("\n")) == (2, 1), shown
            assert shown.startswith("gac serve: ")
            assert message in shown


def test_names_of_ensembles(monkeypatch):
    monkeypatch.chdir(ROOT)
    configs = named_configurations(["examples/ensemble.yaml", "other=examples/ensemble.yaml"])
    assert list(configs) == ["ensemble", "other"]
    assert [config.names for config in configs.values()] == [["ash", "birch"]] * 2
    assert named_configurations(["examples/models/ash", "examples/models/cedar"])["ensemble"].names == ["ash", "cedar"]
