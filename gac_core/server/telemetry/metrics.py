"""Prometheus metrics of a server: its requests, engines and members."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from importlib.metadata import version

import torch
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.exposition import choose_encoder

from gac_core.output import RequestOutput
from gac_core.server.catalog import Catalog
from gac_core.server.record import CLIENT_LEFT, RequestRecord
from gac_core.server.telemetry.engine_metrics import EngineMetrics, StateCollector

UNKNOWN = "unknown"
"""The label of all models that are not served."""

SECONDS_TO_TOKEN = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
SECONDS_PER_TOKEN = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5)
SECONDS_OF_REQUESTS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
SECONDS_IN_QUEUE = (0.001, 0.01, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class ServerMetrics:
    """The metrics of one application, in a registry of its own.

    Labels are bounded: models by the catalog, routes and codes by the application.

    Args:
        catalog: What is served. Every ensemble receives a listener.
    """

    def __init__(self, catalog: Catalog) -> None:
        self.registry = CollectorRegistry()
        self._models = frozenset(model.id for model in catalog.models())
        self._requests = RequestMetrics(self.registry, [*sorted(self._models), UNKNOWN])
        self._engines = EngineMetrics(self.registry, catalog.ensembles)
        self.registry.register(StateCollector(catalog.ensembles))
        ProcessCollector(registry=self.registry)
        build = Gauge("gac_build_info", "Versions.", ("version", "python", "torch"), registry=self.registry)
        build.labels(version("gac-ensemble"), platform.python_version(), torch.__version__).set(1)

    def observe(self, record: RequestRecord) -> None:
        """Counts a request that ended, in whatever way. Thread-safe."""
        self._requests.observe(record, record.model if record.model in self._models else UNKNOWN)

    def render(self, accept: str | None = None) -> tuple[bytes, str]:
        """Returns all metrics as text, and its content type.

        Args:
            accept: The request's header, which selects OpenMetrics or the older text format. Default: the latter.
        """
        encode, content_type = choose_encoder(accept or "")
        return encode(self.registry), content_type

    def close(self) -> None:
        """Removes the listeners. May be called twice."""
        self._engines.close()


class RequestMetrics:
    """Counts requests at their end.

    Args:
        registry: Where the metrics are registered.
        models: All values of the label ``model``; their series exist from the start, so that rates see the first event.
    """

    def __init__(self, registry: CollectorRegistry, models: Sequence[str]) -> None:
        def counter(name: str, text: str) -> Counter:
            made = Counter(name, text, ("model",), registry=registry)
            for model in models:
                made.labels(model)
            return made

        def histogram(name: str, text: str, buckets: Sequence[float]) -> Histogram:
            made = Histogram(name, text, ("model",), buckets=buckets, registry=registry)
            for model in models:
                made.labels(model)
            return made

        self._requests = Counter(
            "gac_requests_total",
            "Requests by HTTP status; 499: the client disconnected before the end.",
            ("route", "model", "status"),
            registry=registry,
        )
        self._errors = Counter(
            "gac_request_errors_total", "Requests refused or failed, by error code.", ("code",), registry=registry
        )
        self._disconnects = counter("gac_client_disconnects_total", "Requests whose client left before the end.")
        self._prompt = counter("gac_prompt_tokens_total", "Tokens of prompts of answered requests, as the gate counts.")
        self._cached = counter("gac_prompt_cached_tokens_total", "Those that every member found in its KV cache.")
        self._documents = counter("gac_documents_total", "Documents of answered requests.")
        self._completion = counter("gac_completion_tokens_total", "Union tokens of answers.")
        self._reasoning = counter("gac_reasoning_tokens_total", "Those of reasoning.")
        self._steps = counter("gac_steps_total", "Union tokens that were selected, not forced, in finished answers.")
        self._ensembled = counter("gac_steps_ensembled_total", "Steps that combined all members.")
        self._forced = counter("gac_forced_tokens_total", "Union tokens that a grammar forced.")
        self._drafted = counter("gac_drafted_tokens_total", "Draft tokens.")
        self._accepted = counter("gac_accepted_tokens_total", "Draft tokens that were accepted.")
        self._first = histogram(
            "gac_time_to_first_token_seconds", "From the request's arrival to its first token.", SECONDS_TO_TOKEN
        )
        self._per_token = histogram(
            "gac_time_per_output_token_seconds", "Mean time per token of an answer, after its first.", SECONDS_PER_TOKEN
        )
        self._seconds = histogram(
            "gac_request_seconds", "Duration of answered requests, from arrival to end.", SECONDS_OF_REQUESTS
        )
        self._queue = histogram(
            "gac_queue_seconds", "From an answer's arrival in the engine to its first step.", SECONDS_IN_QUEUE
        )

    def observe(self, record: RequestRecord, model: str) -> None:
        """Counts a request.

        Args:
            record: The request.
            model: Its label.
        """
        self._requests.labels(record.route, model, str(record.status)).inc()
        if record.status == CLIENT_LEFT:
            self._disconnects.labels(model).inc()
        elif record.error is not None:
            self._errors.labels(record.error).inc()
        finished = sum(output.usage.completion_tokens for output in record.outputs)
        # Tokens of answers that did not end are known where they were streamed.
        self._completion.labels(model).inc(max(finished, record.streamed_tokens))
        if not record.outputs:
            return
        self._seconds.labels(model).observe(record.seconds)
        self._prompt.labels(model).inc(record.prompt_tokens)
        self._cached.labels(model).inc(record.cached_tokens)
        self._documents.labels(model).inc(record.documents)
        first = record.first_token_seconds
        if first is None:
            first = min(output.stats.first_token_seconds for output in record.outputs)
        self._first.labels(model).observe(first)
        for output in record.outputs:
            self._observe_output(output, model)

    def _observe_output(self, output: RequestOutput, model: str) -> None:
        stats, tokens = output.stats, output.usage.completion_tokens
        self._reasoning.labels(model).inc(output.usage.reasoning_tokens)
        self._steps.labels(model).inc(stats.steps)
        self._ensembled.labels(model).inc(stats.steps_ensembled)
        self._forced.labels(model).inc(stats.forced)
        self._drafted.labels(model).inc(stats.drafted)
        self._accepted.labels(model).inc(stats.accepted)
        self._queue.labels(model).observe(stats.queued_seconds)
        if tokens > 1:
            self._per_token.labels(model).observe((stats.total_seconds - stats.first_token_seconds) / (tokens - 1))
