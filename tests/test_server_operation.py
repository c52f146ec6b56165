"""Keys, limits, ids, draining, CORS, logs and traces of the server, in this process."""

from __future__ import annotations

import asyncio
import hmac
import io
import json
import logging
import re
import signal
import socket
import time
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from typer.testing import CliRunner

from gac_core.cli import app as command
from gac_core.cli.serve import named_configurations
from gac_core.errors import ConfigError
from gac_core.server import connections
from gac_core.server.app import create_app
from gac_core.server.auth import digest, read_keys
from gac_core.server.catalog import Catalog
from gac_core.server.draining_server import Closing, DrainingServer
from gac_core.server.logs import JsonFormatter, RequestLog
from gac_core.server.settings import ServerSettings
from gac_core.server.tracing import Tracing

ROOT = Path(__file__).parent.parent
KEYS = ("first-key-of-the-server", "second-key-of-the-server")
PROMPT = "In which town is the Velgin Bridge?"
CHAT = {"messages": [{"role": "user", "content": PROMPT}], "max_tokens": 3, "temperature": 0}


@pytest.fixture
def serving(ensemble):
    """Makes clients of an application with settings; the records of its requests are in ``client.records``."""

    def make(observers=(), **settings):
        records = []
        app = create_app(Catalog({"gac": ensemble}), ServerSettings(**settings), [records.append, *observers])
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test")
        client.app, client.records = app, records
        return client

    return make


def assert_error(response, status, code):
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (status, code)
    assert error["message"]
    assert error["request_id"] == response.headers["x-request-id"]


# ---- keys


@pytest.mark.parametrize(
    ("header", "status"),
    [
        (f"Bearer {KEYS[0]}", 200),
        (f"bearer  {KEYS[1]} ", 200),
        (None, 401),
        ("", 401),
        ("Bearer", 401),
        ("Bearer ", 401),
        (f"Basic {KEYS[0]}", 401),
        (KEYS[0], 401),
        (f"Bearer {KEYS[0]}x", 401),
        (f"Bearer {KEYS[0][:-1]}", 401),
        (f"Bearer {digest(KEYS[0])}", 401),
        (b"Bearer \xff\xfe", 401),
    ],
)
async def test_requests_need_a_key(serving, header, status):
    client = serving(api_keys=tuple(map(digest, KEYS)))
    response = await client.get("/v1/models", headers={} if header is None else {"authorization": header})
    if status == 401:
        assert_error(response, 401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
    assert response.status_code == status
    assert client.records[0].error == (None if status == 200 else "invalid_api_key")


async def test_two_authorization_headers_are_refused(serving):
    client = serving(api_keys=tuple(map(digest, KEYS)))
    headers = [("authorization", f"Bearer {KEYS[0]}"), ("authorization", "Bearer other")]
    assert (await client.get("/v1/models", headers=headers)).status_code == 401


async def test_probes_need_no_key_and_everything_else_does(serving):
    client = serving(api_keys=tuple(map(digest, KEYS)))
    for path in ("/health", "/ready"):
        assert (await client.get(path)).status_code == 200
    for path in ("/v1/models", "/openapi.json", "/docs", "/nothing", "/health/", "//health"):
        assert (await client.get(path)).status_code == 401, path
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        assert (await client.post(path, json={})).status_code == 401, path


async def test_a_key_is_compared_with_all_keys(serving, monkeypatch):
    compared = []
    inner = hmac.compare_digest
    monkeypatch.setattr(hmac, "compare_digest", lambda a, b: compared.append(b) or inner(a, b))
    client = serving(api_keys=tuple(map(digest, KEYS)))
    for key in KEYS:
        compared.clear()
        assert (await client.get("/v1/models", headers={"authorization": f"Bearer {key}"})).status_code == 200
        assert compared == [digest(each).encode() for each in KEYS]


def test_keys_come_from_a_file_and_the_environment(tmp_path, caplog):
    path = tmp_path / "keys"
    path.write_text(f"# one per line\n\n  {KEYS[0]}\n{KEYS[0]}\n")
    path.chmod(0o600)
    other = "third-key-of-the-server"
    assert read_keys(path, {}) == (digest(KEYS[0]),)
    assert read_keys(path, {"GAC_API_KEYS": f"{KEYS[1]}, {other},"}) == tuple(map(digest, (*KEYS, other)))
    assert read_keys(None, {}) == ()
    assert not caplog.records
    path.chmod(0o644)
    read_keys(path, {"GAC_API_KEYS": "short"})
    assert "other users can read" in caplog.records[0].message
    assert "fewer than 16 characters" in caplog.records[1].message
    assert "short" not in caplog.text


def test_errors_of_keys_do_not_show_them(tmp_path):
    empty, strange = tmp_path / "empty", tmp_path / "strange"
    empty.write_text("# nothing\n")
    strange.write_text("secret key\n")
    for path, message in ((empty, "has no keys"), (strange, "API key 1"), (tmp_path / "none", "No such file")):
        with pytest.raises(ConfigError, match=message) as caught:
            read_keys(path, {})
        assert "secret" not in str(caught.value)
    with pytest.raises(ConfigError, match="GAC_API_KEYS"):
        read_keys(None, {"GAC_API_KEYS": " , "})
    with pytest.raises(ConfigError, match="digest") as caught:
        ServerSettings(api_keys=("secret",))
    assert "secret" not in str(caught.value)
    assert digest(KEYS[0]) not in repr(ServerSettings(api_keys=(digest(KEYS[0]),)))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"host": "0.0.0.0"}, "--allow-unauthenticated"),
        ({"host": "::"}, "can be reached from other machines"),
        ({"host": "example.org"}, "can be reached from other machines"),
        ({"host": ""}, "host"),
        ({"port": 65536}, "port"),
        ({"max_body_bytes": 0}, "max_body_bytes"),
        ({"max_choices": 129}, "max_choices"),
        ({"request_timeout": 0}, "request_timeout"),
        ({"drain_timeout": -1}, "drain_timeout"),
        ({"temperature": float("nan")}, "temperature"),
        ({"log_level": "loud"}, "log_level"),
        ({"cors_origins": ("https://a.example/",)}, "without a path"),
        ({"cors_origins": "https://a.example"}, "cors_origins"),
        ({"cors_origins": ("a.example",)}, "cors_origins"),
        ({"otlp_endpoint": "127.0.0.1:4317"}, "otlp_endpoint"),
    ],
)
def test_settings_are_checked(values, message):
    with pytest.raises(ConfigError, match=message):
        ServerSettings(**values)


def test_other_addresses_need_keys_or_consent():
    for host in ("127.0.0.1", "127.0.0.9", "::1", "localhost"):
        ServerSettings(host=host)
    ServerSettings(host="0.0.0.0", api_keys=(digest(KEYS[0]),))
    ServerSettings(host="0.0.0.0", allow_unauthenticated=True)


# ---- limits and ids


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


@pytest.mark.parametrize(
    ("given", "taken"),
    [
        ("abc-1", True),
        ("two words", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("\u00e9".encode("latin-1"), False),
        ("a\tb", False),
    ],
)
async def test_ids_of_clients_are_taken_if_they_are_printable(serving, given, taken):
    client = serving()
    response = await client.get("/v1/models/unknown", headers={"x-request-id": given})
    assert_error(response, 404, "model_not_found")
    found = response.headers["x-request-id"]
    assert found == given if taken else re.fullmatch("req-[0-9a-f]{32}", found)
    assert client.records[0].request_id == found


async def test_requests_are_refused_while_the_server_drains(serving):
    client = serving()
    assert (await client.get("/ready")).status_code == 200
    client.app.state.drain.draining = True
    response = await client.post("/v1/chat/completions", json=CHAT)
    assert_error(response, 503, "server_draining")
    assert response.headers["connection"] == "close"
    assert int(response.headers["retry-after"]) > 0
    assert (await client.get("/ready")).status_code == 503
    assert (await client.get("/health")).status_code == 200


# ---- CORS


async def test_there_are_no_cors_headers_by_default(serving):
    client = serving()
    for method in ("GET", "OPTIONS"):
        headers = {"origin": "https://a.example", "access-control-request-method": "POST"}
        response = await client.request(method, "/v1/models", headers=headers)
        assert not [name for name in response.headers if name.startswith("access-control")]


async def test_only_given_origins_may_call(serving):
    client = serving(cors_origins=("https://a.example",), api_keys=(digest(KEYS[0]),))
    asked = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,x-stainless-os"}
    preflight = await client.options("/v1/chat/completions", headers={"origin": "https://a.example", **asked})
    assert preflight.status_code == 200
    assert preflight.headers["access-control-allow-origin"] == "https://a.example"
    assert "authorization" in preflight.headers["access-control-allow-headers"]
    refused = await client.get("/v1/models", headers={"origin": "https://a.example"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == "https://a.example"
    other = await client.get("/v1/models", headers={"origin": "https://b.example"})
    assert "access-control-allow-origin" not in other.headers
    every = [*preflight.headers, *refused.headers, *other.headers]
    assert "access-control-allow-credentials" not in every


# ---- logs


@pytest.fixture
def logged():
    """Makes a handler with the JSON formatter; returns what was logged so far, as values."""
    handlers = []

    def start(log_prompts=False):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter(log_prompts))
        handlers.append((handler, logging.getLogger("gac_core").level))
        logging.getLogger("gac_core").addHandler(handler)
        logging.getLogger("gac_core").setLevel(logging.INFO)
        return lambda: [json.loads(line) for line in stream.getvalue().splitlines()]

    yield start
    for handler, level in handlers:
        logging.getLogger("gac_core").removeHandler(handler)
        logging.getLogger("gac_core").setLevel(level)


async def test_each_request_is_one_line(serving, logged, ensemble):
    lines = logged()
    client = serving([RequestLog()])
    answer = (await client.post("/v1/chat/completions", json=CHAT)).json()
    [line] = lines()
    expected = ensemble.generate(CHAT["messages"], max_tokens=3)
    assert datetime.fromisoformat(line.pop("time")).tzinfo is UTC
    assert 0 < line.pop("first_token_seconds") <= line.pop("seconds")
    assert line == {
        "level": "info",
        "logger": "gac_core.server.requests",
        "message": "request",
        "event": "request",
        "request_id": client.records[0].request_id,
        "route": "/v1/chat/completions",
        "model": None,
        "status": 200,
        "stream": False,
        "prompt_tokens": expected.usage.prompt_tokens,
        "completion_tokens": 3,
        "share_ensembled": 1.0,
        "finish_reason": "length",
        "error": None,
    }
    assert answer["choices"][0]["message"]["content"] == expected.text
    assert PROMPT not in json.dumps(lines())


async def test_prompts_are_logged_on_demand(serving, logged):
    lines = logged(log_prompts=True)
    client = serving([RequestLog(log_prompts=True)], log_prompts=True)
    answer = (await client.post("/v1/chat/completions", json=CHAT)).json()
    [line] = lines()
    assert PROMPT in line["prompt"]
    assert line["answers"] == [answer["choices"][0]["message"]["content"]]


async def test_values_cannot_forge_lines(serving, logged):
    lines = logged()
    client = serving([RequestLog()])
    name = 'x\n{"level": "critical"}\u2028\x1b[31m'
    await client.post("/v1/chat/completions", json={**CHAT, "model": name})
    [line] = lines()
    assert (line["status"], line["model"]) == (404, name)


async def test_probes_are_logged_where_they_fail(serving, logged):
    lines = logged()
    client = serving([RequestLog()])
    await client.get("/ready")
    assert lines() == []
    client.app.state.drain.draining = True
    await client.get("/ready")
    assert [(line["route"], line["status"], line["level"]) for line in lines()] == [("/ready", 503, "warning")]


def test_tracebacks_have_no_messages_unless_prompts_are_logged(logged):
    def fail():
        try:
            {}[PROMPT]
        except KeyError:
            raise ExceptionGroup(
                PROMPT, [ValueError(PROMPT), UnicodeEncodeError("utf-8", PROMPT, 0, 1, "bad")]
            ) from None

    for log_prompts in (False, True):
        lines = logged(log_prompts)
        try:
            fail()
        except ExceptionGroup as caught:
            try:
                raise RuntimeError(PROMPT) from caught
            except RuntimeError:
                logging.getLogger("gac_core.server").exception("request %s failed", "abc", extra={"request_id": "abc"})
        [line] = lines()
        assert (line["message"], line["request_id"]) == ("request abc failed", "abc")
        for name in ("RuntimeError", "ExceptionGroup", "ValueError", "UnicodeEncodeError"):
            assert name in line["traceback"]
        assert "in fail" in line["traceback"]
        assert (PROMPT in line["traceback"]) is log_prompts


# ---- traces


async def test_an_answer_is_a_span_within_its_request(serving):
    exporter = InMemorySpanExporter()
    tracing = Tracing(TracerProvider())
    tracing.provider.add_span_processor(SimpleSpanProcessor(exporter))
    client = serving([tracing.observe])
    tracing.install(client.app)
    parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    headers = {"traceparent": parent, "x-request-id": "traced"}
    body = {**CHAT, "model": "gac", "n": 2, "temperature": 0.5, "seed": 7, "threshold": 0.5, "gate": "ash"}
    await client.post("/v1/chat/completions", json=body, headers=headers)
    await client.get("/health")
    await client.get("/no/such/path")
    *answers, request, unknown = exporter.get_finished_spans()
    assert request.name == "POST /v1/chat/completions"
    assert f"{request.context.trace_id:032x}" == parent.split("-")[1]
    assert f"{request.parent.span_id:016x}" == parent.split("-")[2]
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["gac.request_id"] == "traced"
    assert [answer.parent.span_id for answer in answers] == [request.context.span_id] * 2
    outputs = client.records[0].outputs
    for index, (answer, output) in enumerate(zip(answers, outputs, strict=True)):
        found = answer.attributes
        assert answer.name == "chat gac"
        assert answer.start_time < answer.end_time
        assert found["gen_ai.request.model"] == "gac"
        assert found["gen_ai.usage.input_tokens"] == output.usage.prompt_tokens
        assert found["gen_ai.usage.output_tokens"] == 3
        assert found["gen_ai.response.finish_reasons"] == ("length",)
        assert found["gen_ai.response.time_to_first_chunk"] > 0
        assert found["gac.share_ensembled"] == output.stats.share_ensembled
        assert (found["gac.gate"], found["gac.threshold"], found["gac.answer.index"]) == ("ash", 0.5, index)
    assert (unknown.name, unknown.attributes["error.type"]) == ("GET unknown", "not_found")
    assert unknown.parent is None
    assert PROMPT not in "".join(span.to_json() for span in exporter.get_finished_spans())


async def test_prompts_are_traced_on_demand(serving):
    exporter = InMemorySpanExporter()
    tracing = Tracing(TracerProvider(), log_prompts=True)
    tracing.provider.add_span_processor(SimpleSpanProcessor(exporter))
    client = serving([tracing.observe], log_prompts=True)
    tracing.install(client.app)
    answer = (await client.post("/v1/chat/completions", json=CHAT)).json()
    span = exporter.get_finished_spans()[0]
    assert PROMPT in span.attributes["gac.prompt"]
    assert json.loads(span.attributes["gac.answer"])["text"] == answer["choices"][0]["message"]["content"]


def test_a_collector_that_cannot_be_reached_does_not_delay_the_end():
    tracing = Tracing.to_collector("http://127.0.0.1:1")
    assert tracing.provider.resource.attributes["service.name"] == "gac"
    tracing.provider.get_tracer("test").start_span("left").end()
    began = time.monotonic()
    tracing.close()
    assert time.monotonic() - began < 4


# ---- connections


@asynccontextmanager
async def listening(app, drain_timeout=5.0):
    """Serves an application on a free port; yields the server and its port."""
    bound = socket.create_server(("127.0.0.1", 0))
    server = DrainingServer(app, drain_timeout, Closing([]), lambda: None)
    running = asyncio.create_task(server.serve([bound]))
    while not server.started:
        await asyncio.sleep(0.001)
    yield server, bound.getsockname()[1]
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
    received = await asyncio.wait_for(reader.read(), 5)
    writer.close()
    return received, time.monotonic() - began


HEAD = b"GET /health HTTP/1.1\r\nhost: test\r\n"


async def test_connections_are_limited(serving, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_SECONDS", 0.2)
    async with listening(serving(max_body_bytes=1000).app) as (_, port):
        received, _ = await exchanged(port, HEAD + b"connection: close\r\n\r\n")
        assert received.startswith(b"HTTP/1.1 200")
        many = b"".join(b"x-%d: %s\r\n" % (number, b"a" * 1000) for number in range(70))
        received, _ = await exchanged(port, HEAD + many + b"\r\n")
        assert received.startswith(b"HTTP/1.1 431")
        received, _ = await exchanged(port, HEAD + b"x: ", *[b"a" * 16384] * 5, pause=0.01)
        assert received.startswith(b"HTTP/1.1 431")
        received, seconds = await exchanged(port, HEAD)
        assert (received, seconds < 2) == (b"", True)
        received, seconds = await exchanged(port)
        assert (received, seconds < 2) == (b"", True)


async def test_a_client_that_sends_a_large_body_reads_the_refusal(serving):
    async with listening(serving(max_body_bytes=1000).app) as (_, port), httpx.AsyncClient() as client:
        for _ in range(2):
            response = await client.post(f"http://127.0.0.1:{port}/v1/completions", content=b"x" * 2**23)
            assert_error(response, 413, "body_too_large")
        head = b"POST /v1/completions HTTP/1.1\r\nhost: test\r\ncontent-length: 2000\r\nexpect: 100-continue\r\n\r\n"
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
