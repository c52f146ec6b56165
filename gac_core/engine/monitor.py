"""`Monitor`: passes an engine's events on to listeners; and the state of its ensembles."""

from __future__ import annotations

import logging
import threading
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace

from gac_core.decoding.request import Request
from gac_core.engine.mailbox import Client
from gac_core.errors import EngineStuckError, quote
from gac_core.events import Event, Listener, MemberFailed, StepDone
from gac_core.executor.base import ExecutorMember
from gac_core.health import EnsembleHealth, MemberHealth

logger = logging.getLogger(__name__)

_thread = threading.local()


def in_listener() -> bool:
    """Returns whether this thread runs a listener, so that the engine may be waiting for it."""
    return bool(getattr(_thread, "listening", False))


class Monitor:
    """Passes events of an engine on to the listeners of the ensembles that they concern, and counts failures.

    Thread-safe. Members in events have the names of the listener's ensemble.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._listeners: tuple[tuple[Client, Listener], ...] = ()
        self._failures: Counter[str] = Counter()

    def add(self, client: Client, listener: Listener) -> Callable[[], None]:
        """Adds a listener of an ensemble; returns a function that removes it, which may be called again."""
        entry = (client, listener)
        with self._lock:
            self._listeners = (*self._listeners, entry)

        def remove() -> None:
            with self._lock:
                self._listeners = tuple(each for each in self._listeners if each is not entry)

        return remove

    def remove(self, client: Client) -> None:
        """Removes all listeners of an ensemble."""
        with self._lock:
            self._listeners = tuple(each for each in self._listeners if each[0] is not client)

    def failures(self, member_id: str) -> int:
        """Returns how often a member failed, as a whole or for one request."""
        return self._failures[member_id]

    def emit(self, event: Event) -> None:
        """Passes an event on; what a listener raises is logged."""
        if isinstance(event, MemberFailed):
            with self._lock:
                self._failures[event.member_id] += 1
        for client, listener in self._listeners:
            own = event if isinstance(event, StepDone) else _named(event, client)
            if own is None:
                continue
            outer, _thread.listening = in_listener(), True
            try:
                listener(own)
            except BaseException:
                logger.exception("a listener raised")
            finally:
                _thread.listening = outer


def _named(event: Event, client: Client) -> Event | None:
    """Returns an event of a member with its name in an ensemble; None if it is not one of its members."""
    assert not isinstance(event, StepDone)
    name = client.names.get(event.member_id)
    return None if name is None else replace(event, member=name)


def ensemble_health(
    client: Client,
    members: Sequence[MemberHealth | None],
    failures: Sequence[int],
    running: Sequence[Request],
    waiting: Sequence[Request],
    step_seconds: float | None,
    stuck: tuple[str | None, float] | None,
) -> EnsembleHealth:
    """Returns the state of an ensemble that is in use.

    Args:
        client: The ensemble.
        members: The executor's view of its members, in their order; None for one that has not joined the engine yet.
        failures: How often each failed.
        running: The engine's requests that run, those of other ensembles included.
        waiting: Those that wait.
        step_seconds: How long the engine's step has been running.
        stuck: The member that it waits for, and for how long, if that is too long.
    """
    known = [state or _joining(member) for state, member in zip(members, client.members, strict=True)]
    states = tuple(
        replace(
            state,
            name=client.names[state.member_id],
            requests=sum(_uses(request, state.member_id) for request in running),
            queue=sum(_uses(request, state.member_id) for request in waiting),
            failures=failed,
        )
        for state, failed in zip(known, failures, strict=True)
    )
    down = next((state for state in states if not state.alive), None)
    reason = None if stuck is None else str(EngineStuckError(*stuck))
    if reason is None and down is not None:
        reason = f"member {quote(down.name)} is {down.state}: {down.reason}"
    return EnsembleHealth(
        healthy=reason is None,
        reason=reason,
        members=states,
        requests=sum(request.ensemble_id == client.ensemble_id for request in running),
        queue=sum(request.ensemble_id == client.ensemble_id for request in waiting),
        step_seconds=step_seconds,
    )


def _joining(member: ExecutorMember) -> MemberHealth:
    """Returns the state of a member that the engine does not use yet."""
    return MemberHealth("", member.member_id, where=member.runs_on, weight_bytes=member.weight_bytes)


def unusable(client: Client, reason: str) -> EnsembleHealth:
    """Returns the state of an ensemble whose members no engine of this process runs."""
    members = [MemberHealth(client.names[each.member_id], each.member_id, "closed", reason) for each in client.members]
    return EnsembleHealth(False, reason, tuple(members))


def _uses(request: Request, member_id: str) -> bool:
    return any(voice.member.member_id == member_id for voice in list(request.voices))
