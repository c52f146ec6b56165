"""OpenTelemetry: a span per request, and one per answer with the attributes of generative models (extra ``otel``)."""

from __future__ import annotations

import json
import threading
import time
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from opentelemetry import propagate, trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from starlette.types import ASGIApp, Receive, Scope, Send

from gac_core.output import RequestOutput
from gac_core.server.access.auth import OPEN_PATHS
from gac_core.server.record import RequestRecord

OPERATIONS = {"/v1/chat/completions": "chat", "/v1/completions": "text_completion"}
CLOSE_SECONDS = 3.0


@dataclass(frozen=True)
class Tracing:
    """Traces of a server.

    Attributes:
        provider: Makes and exports spans.
        log_prompts: Whether spans have prompts and answers. Default False.
    """

    provider: TracerProvider
    log_prompts: bool = False

    @classmethod
    def to_collector(cls, endpoint: str, log_prompts: bool = False) -> Tracing:
        """Returns traces that are sent to a collector.

        Args:
            endpoint: Its URL, for OTLP over gRPC; ``http://`` is without TLS.
            log_prompts: As in the attribute.
        """
        exporter = OTLPSpanExporter(endpoint=endpoint, insecure=endpoint.startswith("http://"), timeout=2)
        # What the environment sets (OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES) replaces the name.
        named = Resource.create({SERVICE_NAME: "gac"})
        provider = TracerProvider(resource=named, shutdown_on_exit=False)
        provider.add_span_processor(BatchSpanProcessor(exporter))
        return cls(provider, log_prompts)

    def install(self, app: FastAPI) -> None:
        """Adds `RequestSpans` as the outermost middleware, so that `observe` runs within the span of its request."""
        app.add_middleware(RequestSpans, provider=self.provider)

    def observe(self, record: RequestRecord) -> None:
        """Completes the span of a request, and adds one for each of its answers."""
        span = trace.get_current_span()
        if not span.is_recording():
            return
        span.update_name(f"{getattr(span, 'name', 'HTTP')} {record.route}")
        span.set_attribute("http.route", record.route)
        span.set_attribute("http.response.status_code", record.status)
        span.set_attribute("gac.request_id", record.request_id)
        if record.error is not None:
            span.set_attribute("error.type", record.error)
        if record.status >= 500:
            span.set_status(trace.StatusCode.ERROR)
        end = time.time_ns()
        for index, output in enumerate(record.outputs):
            answer = self.provider.get_tracer(__name__).start_span(
                f"{OPERATIONS.get(record.route, 'chat')} {record.model or ''}".rstrip(),
                start_time=end - int(record.seconds * 1e9),
                attributes=self._attributes(record, output, index),
            )
            answer.end(end)

    def _attributes(self, record: RequestRecord, output: RequestOutput, index: int) -> dict[str, Any]:
        stats, settings = output.stats, output.stats.settings
        values = {
            "gen_ai.operation.name": OPERATIONS.get(record.route, "chat"),
            "gen_ai.provider.name": "gac",
            "gen_ai.request.model": record.model,
            "gen_ai.request.seed": settings.seed,
            "gen_ai.request.temperature": settings.temperature,
            "gen_ai.response.id": output.request_id,
            "gen_ai.response.finish_reasons": [output.finish_reason.value],
            "gen_ai.response.time_to_first_chunk": stats.first_token_seconds,
            "gen_ai.usage.input_tokens": output.usage.prompt_tokens,
            "gen_ai.usage.output_tokens": output.usage.completion_tokens,
            "gac.answer.index": index,
            "gac.share_ensembled": stats.share_ensembled,
            "gac.gate": settings.gate,
            "gac.threshold": settings.threshold,
            "gac.combine": settings.combine,
            "gac.members": list(settings.weights),
            "gac.queued_seconds": stats.queued_seconds,
            "gac.drafted_tokens": stats.drafted,
            "gac.accepted_tokens": stats.accepted,
        }
        if self.log_prompts:
            values["gac.prompt"] = record.prompt
            values["gac.answer"] = json.dumps({"reasoning": output.reasoning, "text": output.text})
        return {name: value for name, value in values.items() if value is not None}

    def close(self) -> None:
        """Sends what is left, for 3 seconds at most."""
        closing = threading.Thread(target=self.provider.shutdown, name="gac-traces", daemon=True)
        closing.start()
        closing.join(CLOSE_SECONDS)


class RequestSpans:
    """ASGI middleware that makes a span for each request but those of probes; a ``traceparent`` header is its parent.

    Args:
        app: The application behind it.
        provider: Makes and exports spans.
    """

    def __init__(self, app: ASGIApp, provider: TracerProvider) -> None:
        self.app = app
        self._tracer = provider.get_tracer(__name__)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        attributes = {"http.request.method": scope["method"], "url.scheme": scope["scheme"], "url.path": scope["path"]}
        if scope.get("client"):
            attributes["client.address"] = scope["client"][0]
        span = self._tracer.start_span(
            scope["method"], propagate.extract(headers), kind=trace.SpanKind.SERVER, attributes=attributes
        )
        # Exceptions are not recorded: their messages may quote prompts.
        with trace.use_span(span, end_on_exit=True, record_exception=False, set_status_on_exception=False):
            await self.app(scope, receive, send)
