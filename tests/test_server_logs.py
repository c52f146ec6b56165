"""Logs and traces of the server."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import io
import json
import logging
import os
import time
from datetime import UTC, datetime

import pytest
from app_client import CHAT, PROMPT, AppClient
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from gac_core.server.telemetry.logs import JsonFormatter, RequestLog, configure_logs
from gac_core.server.telemetry.tracing import Tracing


@pytest.fixture
def serving(ensemble):
    """Makes clients of applications with settings."""
    return functools.partial(AppClient, ensemble)


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
        "model": "gac",
        "status": 200,
        "stream": False,
        "prompt_tokens": expected.usage.prompt_tokens,
        "documents": None,
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


async def test_exceptions_of_tasks_are_logged_without_messages():
    future = asyncio.get_running_loop().create_future()
    future.set_exception(KeyError(PROMPT))
    context = {"message": "exception was never retrieved", "future": future, "exception": future.exception()}
    for log_prompts in (False, True):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(JsonFormatter(log_prompts))
        logging.getLogger("asyncio").addHandler(handler)
        try:
            asyncio.get_running_loop().default_exception_handler(context)
        finally:
            logging.getLogger("asyncio").removeHandler(handler)
        line = json.loads(stream.getvalue())
        assert line["message"].startswith("exception was never retrieved")
        assert "KeyError" in line["traceback"]
        assert (PROMPT in stream.getvalue()) is log_prompts


def test_records_that_cannot_be_written_are_not_shown_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    monkeypatch.setattr(logging.getLogger(), "handlers", list(logging.getLogger().handlers))
    levels = {name: logging.getLogger(name).level for name in ("", "gac_core", "uvicorn")}
    reading, writing = os.pipe()
    os.close(reading)
    try:
        configure_logs(stream=os.fdopen(writing, "w"))
        logging.getLogger("gac_core").warning("a record")
    finally:
        with contextlib.suppress(BrokenPipeError):
            logging.getLogger().handlers[0].stream.close()
        logging.captureWarnings(False)
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
    assert capsys.readouterr().err == ""


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
