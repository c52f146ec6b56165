"""Metrics of engines and members: from their events as they happen, and from their state at each scrape."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import get_args

from prometheus_client import CollectorRegistry, Counter, Histogram
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from gac_core.ensemble import Ensemble
from gac_core.events import Event, ForwardDone, MemberFailed, MemberRecovered, StepDone
from gac_core.health import EnsembleHealth, MemberHealth, MemberState

SECONDS_OF_STEPS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
REQUESTS_OF_STEPS = (1, 2, 4, 8, 16, 32, 64, 128)
MEMBER = ("ensemble", "member")
FAILURES = ("MemberError", "MemberLostError", "MemberTimeoutError")


class EngineMetrics:
    """Counts the events of ensembles.

    Ensembles may share an engine and members. A step is counted once however many ensembles are told of it, and a
    member under its name in the first ensemble that has it.

    Args:
        registry: Where the metrics are registered.
        ensembles: The ensembles by name.
    """

    def __init__(self, registry: CollectorRegistry, ensembles: Mapping[str, Ensemble]) -> None:
        self._steps = Histogram(
            "gac_engine_step_seconds", "Wall time of an engine's step.", registry=registry, buckets=SECONDS_OF_STEPS
        )
        self._batch = Histogram(
            "gac_engine_step_requests", "Requests in a step.", registry=registry, buckets=REQUESTS_OF_STEPS
        )
        self._tokens = Counter(
            "gac_engine_tokens_total",
            "Union tokens that engines committed, of aborted requests too.",
            registry=registry,
        )
        self._forwards = Histogram(
            "gac_member_forward_seconds",
            "Wall time in which a member ran its chunks of one step.",
            MEMBER,
            registry=registry,
            buckets=SECONDS_OF_STEPS,
        )
        self._computed = Counter("gac_member_tokens_total", "Tokens that a member computed.", MEMBER, registry=registry)
        self._failures = Counter(
            "gac_member_failures_total",
            'Failures of a member: scope "member" as a whole, "request" for one request.',
            (*MEMBER, "scope", "error"),
            registry=registry,
        )
        self._recoveries = Counter(
            "gac_member_recoveries_total", "Returns of a member that had failed as a whole.", MEMBER, registry=registry
        )
        self._restarts = Counter(
            "gac_member_restarts_total", "Those returns in which it was started anew.", MEMBER, registry=registry
        )
        # The engine passes one object on to the listeners of all its ensembles, one after the other in its thread.
        self._last = threading.local()
        sources = member_sources(ensembles)
        self._removers = [
            ensemble.add_listener(self._listener({key: at for key, at in sources.items() if at[0] == name}))
            for name, ensemble in ensembles.items()
        ]

    def close(self) -> None:
        """Removes the listeners. May be called twice."""
        for remove in self._removers:
            remove()

    def _listener(self, members: Mapping[str, tuple[str, str]]) -> Callable[[Event], None]:
        """Returns the listener of one ensemble.

        Args:
            members: Labels by member id of those members that are counted under this ensemble.
        """
        forwards = {key: self._forwards.labels(*labels) for key, labels in members.items()}
        computed = {key: self._computed.labels(*labels) for key, labels in members.items()}
        recoveries = {key: self._recoveries.labels(*labels) for key, labels in members.items()}
        restarts = {key: self._restarts.labels(*labels) for key, labels in members.items()}

        def listen(event: Event) -> None:
            if isinstance(event, StepDone):
                self._count_step(event)
            elif event.member_id not in members:
                return
            elif isinstance(event, ForwardDone):
                forwards[event.member_id].observe(event.seconds)
                computed[event.member_id].inc(event.tokens)
            elif isinstance(event, MemberFailed):
                scope = "member" if event.request_id is None else "request"
                self._failures.labels(*members[event.member_id], scope, event.error).inc()
            elif isinstance(event, MemberRecovered):
                recoveries[event.member_id].inc()
                restarts[event.member_id].inc(event.restarted)

        for labels in members.values():
            for error in FAILURES:
                for scope in ("member", "request"):
                    self._failures.labels(*labels, scope, error)
        return listen

    def _count_step(self, event: StepDone) -> None:
        if event is getattr(self._last, "event", None):
            return
        self._last.event = event
        self._steps.observe(event.seconds)
        self._batch.observe(event.requests)
        self._tokens.inc(event.tokens)


class StateCollector(Collector):
    """Reads the state of ensembles and their members at each scrape; does not wait for forwards.

    Args:
        ensembles: The ensembles by name.
    """

    def __init__(self, ensembles: Mapping[str, Ensemble]) -> None:
        self._ensembles = ensembles

    def collect(self) -> Iterator[Metric]:
        """Yields the gauges of all ensembles."""
        states = {name: ensemble.health() for name, ensemble in self._ensembles.items()}
        yield from _of_ensembles(states)
        limits = GaugeMetricFamily("gac_queue_limit", "Requests that may wait for a place.", labels=["ensemble"])
        for name, ensemble in self._ensembles.items():
            limits.add_metric([name], ensemble.config.max_queue)
        yield limits
        yield from _of_members(states, member_sources(self._ensembles))


def member_sources(ensembles: Mapping[str, Ensemble]) -> dict[str, tuple[str, str]]:
    """Returns, by member id, the first ensemble that has the member, and its name there: the labels of its counters."""
    sources: dict[str, tuple[str, str]] = {}
    for name, ensemble in ensembles.items():
        for member in ensemble.health().members:
            sources.setdefault(member.member_id, (name, member.name))
    return sources


def _of_ensembles(states: Mapping[str, EnsembleHealth]) -> Iterator[Metric]:
    read: list[tuple[str, str, Callable[[EnsembleHealth], float]]] = [
        ("gac_requests_running", "Requests in the batch.", lambda state: state.requests),
        ("gac_requests_waiting", "Requests that wait for a place in the batch.", lambda state: state.queue),
        ("gac_ensemble_healthy", "1 if requests are answered with all members, else 0.", lambda state: state.healthy),
        (
            "gac_engine_running_step_seconds",
            "How long the engine's current step has been running; 0 between steps.",
            lambda state: state.step_seconds or 0.0,
        ),
    ]
    for name, text, value in read:
        yield _gauge(name, text, ["ensemble"], (([ensemble], value(state)) for ensemble, state in states.items()))


def _of_members(states: Mapping[str, EnsembleHealth], sources: Mapping[str, tuple[str, str]]) -> Iterator[Metric]:
    members = [(ensemble, member) for ensemble, state in states.items() for member in state.members]
    yield _gauge(
        "gac_member_state",
        "1 for the state that a member is in, 0 for the others.",
        [*MEMBER, "state"],
        (
            ([ensemble, member.name, state], member.state == state)
            for ensemble, member in members
            for state in get_args(MemberState)
        ),
    )
    # Ensembles that share members would count the same memory several times.
    own = [each for each in members if sources.get(each[1].member_id) == (each[0], each[1].name)]
    read: list[tuple[str, str, Callable[[MemberHealth], float]]] = [
        ("gac_member_weight_bytes", "Memory of a member's weights.", lambda member: member.weight_bytes),
        ("gac_member_cache_bytes", "Memory of a member's KV cache.", lambda member: member.cache_bytes),
        (
            "gac_member_document_cache_bytes",
            "Memory of the documents that a member's KV cache keeps.",
            lambda member: member.document_cache_bytes,
        ),
    ]
    for name, text, value in read:
        yield _gauge(name, text, MEMBER, (([ensemble, member.name], value(member)) for ensemble, member in own))
    yield _gauge(
        "gac_member_info",
        "1 for each member of each ensemble; counters of a member have the labels source_ensemble and source_member.",
        [*MEMBER, "source_ensemble", "source_member", "where"],
        (
            ([ensemble, member.name, *sources.get(member.member_id, (ensemble, member.name)), member.where], 1)
            for ensemble, member in members
        ),
    )


def _gauge(name: str, text: str, labels: Iterable[str], values: Iterable[tuple[list[str], float]]) -> Metric:
    family = GaugeMetricFamily(name, text, labels=list(labels))
    for given, value in values:
        family.add_metric(given, float(value))
    return family
