"""The engines of a process: one per set of devices or actors, shared by the ensembles on them."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from weakref import WeakValueDictionary

from gac_core.engine.assembly import new_engine
from gac_core.engine.mailbox import Client
from gac_core.engine.monitor import Monitor
from gac_core.engine.session import Session
from gac_core.engine.worker import Worker
from gac_core.events import Listener
from gac_core.executor.base import Executor


@dataclass(frozen=True)
class Place:
    """Where the members of an engine run.

    Attributes:
        key: Ensembles with equal keys share an engine: of this process's members their devices, of others their actors.
        new_executor: Returns an executor that reaches them, and reports to a listener.
    """

    key: Hashable
    new_executor: Callable[[Listener], Executor]


class Engines:
    """Holds the running engines by the place of their members. Thread-safe; empty in a forked process."""

    def __init__(self) -> None:
        self._clear()
        if hasattr(os, "register_at_fork"):
            # The threads of the parent's engines do not exist in the child, and the lock may be held.
            os.register_at_fork(after_in_child=self._clear)

    def _clear(self) -> None:
        self._lock = threading.Lock()
        # Weak: a worker lives as long as its thread and the ensembles that used it.
        self._workers: WeakValueDictionary[Hashable, Worker] = WeakValueDictionary()

    def open(self, client: Client, place: Place, shared: bool = True) -> Session:
        """Returns a session of an ensemble, in the engine of its place, which is started if there is none.

        An engine whose step has been running for longer than the ensemble's ``stuck_after`` is replaced by a new one
        for ensembles that are opened from then on.

        Args:
            client: The ensemble.
            place: Where its members run.
            shared: Whether other ensembles may use the engine. Default True.
        """
        if not shared:
            return _join(_new_worker(place), client)
        with self._lock:
            worker = self._workers.get(place.key)
            if worker is not None and worker.stuck_step(client) is None and worker.join(client):
                return Session(worker, client)
            worker = self._workers[place.key] = _new_worker(place)
            return _join(worker, client)


def _new_worker(place: Place) -> Worker:
    monitor = Monitor()
    return Worker(new_engine(place.new_executor(monitor.emit), monitor.emit), monitor)


def _join(worker: Worker, client: Client) -> Session:
    joined = worker.join(client)
    assert joined, "a new worker accepts an ensemble"
    return Session(worker, client)


ENGINES = Engines()
"""The engines of this process."""
