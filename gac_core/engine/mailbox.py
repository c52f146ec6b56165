"""What callers and the engine's thread share: the ensembles that use an engine, and their requests."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from gac_core.errors import EngineClosedError, GaCError, QueueFullError
from gac_core.output import OutputChunk

if TYPE_CHECKING:
    from gac_core.decoding.request import Request
    from gac_core.executor.base import ExecutorMember

# Seconds between two calls of ``check`` while a request waits for a place in the queue.
_CHECK_INTERVAL = 1.0

Event = OutputChunk | GaCError
Sink = Callable[[Event], None]


@dataclass(eq=False)
class Client:
    """One ensemble that uses an engine.

    Attributes:
        ensemble_id: Its id.
        members: The members that its requests use.
        names: Their names in the ensemble, by member id.
        max_batch_size: How many of its requests run at once at most.
        max_requests: How many of its requests may run or wait.
        stuck_after: Seconds after which a step that has not returned counts as stuck.
        release: Called once the engine does not use the members any more.
        closed: Whether no request is accepted any more.
        num_requests: How many of its requests run or wait.
        released: Set once ``release`` was called.
    """

    ensemble_id: str
    members: Sequence[ExecutorMember]
    names: Mapping[str, str]
    max_batch_size: int
    max_requests: int
    stuck_after: float
    release: Callable[[], None] = lambda: None
    closed: bool = False
    num_requests: int = 0
    released: threading.Event = field(default_factory=threading.Event)


@dataclass(frozen=True)
class Entry:
    """A request with the receiver of its events and its ensemble."""

    request: Request
    sink: Sink
    client: Client


@dataclass(frozen=True)
class Changes:
    """What changed since the engine's thread last looked: ensembles that join or leave, requests added or aborted."""

    joining: Sequence[Client]
    added: Sequence[Entry]
    aborted: Sequence[str]
    leaving: Sequence[Client]


class Mailbox:
    """The state that callers and the engine's thread share. Thread-safe.

    A request is pending until the engine's thread takes it over, and held until the engine has dropped it; both count
    towards the ensemble's limit. One that is aborted while it is pending is gone at once.
    """

    def __init__(self) -> None:
        # Reentrant: a stream that is garbage-collected may abort its request while this thread holds the lock.
        self.lock = threading.Condition(threading.RLock())
        self.closed = False
        self.pending: dict[str, Entry] = {}
        self.held: dict[str, Entry] = {}
        self.aborted: set[str] = set()
        self.clients: list[Client] = []
        self._joining: list[Client] = []
        self._leaving: list[Client] = []

    # ---- for callers

    def join(self, client: Client) -> bool:
        """Adds an ensemble; False if the engine stops."""
        with self.lock:
            if not self.closed:
                self.clients.append(client)
                self._joining.append(client)
                self.lock.notify_all()
            return not self.closed

    def leave(self, client: Client) -> bool:
        """Removes an ensemble, once; True if no other is left, so that the engine stops after its step."""
        with self.lock:
            if not client.closed:
                client.closed = True
                self.clients.remove(client)
                self._leaving.append(client)
                self.closed = self.closed or not self.clients
                self.lock.notify_all()
            return self.closed

    def name_of(self, member_id: str, client: Client) -> str:
        """Returns a member's name in an ensemble; where it is not one of its members, that in another ensemble."""
        with self.lock:
            using = (each for each in (client, *self.clients, *self._leaving) if member_id in each.names)
            return next((each.names[member_id] for each in using), member_id)

    def submit(self, entry: Entry, check: Callable[[], None], wait: bool, timeout: float | None) -> None:
        """Queues a request.

        Args:
            entry: The request.
            check: Called before and while waiting; raises to refuse the request.
            wait: Wait for a place in the queue instead of being refused.
            timeout: Seconds to wait at most. None waits without a limit.

        Raises:
            EngineClosedError: The ensemble is closed.
            QueueFullError: As many of its requests as are allowed run or wait already.
            TimeoutError: There was no place in time.
        """
        client = entry.client
        until = None if timeout is None else time.monotonic() + timeout
        with self.lock:
            check()
            while wait and not (client.closed or self.closed) and client.num_requests >= client.max_requests:
                left = _CHECK_INTERVAL if until is None else min(_CHECK_INTERVAL, until - time.monotonic())
                if left <= 0:
                    raise TimeoutError
                self.lock.wait(left)
                check()
            if client.closed or self.closed:
                raise EngineClosedError("the ensemble is closed; load it anew")
            if client.num_requests >= client.max_requests:
                raise QueueFullError(client.max_requests)
            client.num_requests += 1
            self.pending[entry.request.request_id] = entry
            self.lock.notify_all()

    def abort(self, request_id: str) -> None:
        """Gives up a request; one that the engine holds keeps its place until it is dropped, before the next step."""
        with self.lock:
            self._remove(self.pending, request_id)
            if request_id in self.held:
                self.aborted.add(request_id)
            self.lock.notify_all()

    # ---- for the engine's thread

    def take(self, busy: Callable[[], bool]) -> Changes | None:
        """Returns what changed; waits until something did unless the engine is busy. None once it is time to stop."""
        with self.lock:
            while not (self.closed or self.pending or self.aborted or self._joining or self._leaving or busy()):
                self.lock.wait()
            if self.closed:
                return None
            self.held.update(self.pending)
            changes = Changes(self._joining, list(self.pending.values()), list(self.aborted), self._leaving)
            self._joining, self.pending, self.aborted, self._leaving = [], {}, set(), []
            return changes

    def receiver(self, request_id: str) -> Entry | None:
        """Returns a request that the engine holds, unless it was aborted."""
        with self.lock:
            return None if request_id in self.aborted else self.held.get(request_id)

    def forget(self, request_id: str) -> None:
        """Frees the place of a request that the engine has dropped."""
        with self.lock:
            self._remove(self.held, request_id)
            self.aborted.discard(request_id)
            self.lock.notify_all()

    def end(self, client: Client) -> list[Entry]:
        """Removes an ensemble's requests, and returns those whose callers still wait."""
        with self.lock:
            ids = [key for entries in (self.held, self.pending) for key in entries if entries[key].client is client]
            waiting = [entry for key in ids if (entry := self.receiver(key) or self.pending.get(key)) is not None]
            for key in ids:
                self._remove(self.held, key)
                self._remove(self.pending, key)
                self.aborted.discard(key)
            self.lock.notify_all()
            return waiting

    def stop(self) -> list[Client]:
        """Accepts no request any more; returns the ensembles that are left, those that are leaving included."""
        with self.lock:
            self.closed = True
            left = [*self.clients, *self._leaving]
            self.clients, self._leaving = [], []
            for client in left:
                client.closed = True
            self.lock.notify_all()
            return left

    @staticmethod
    def _remove(entries: dict[str, Entry], request_id: str) -> None:
        entry = entries.pop(request_id, None)
        if entry is not None:
            entry.client.num_requests -= 1
