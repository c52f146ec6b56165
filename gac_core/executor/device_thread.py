"""Calls that run one after another in the thread of a device, each within a time limit."""

from __future__ import annotations

import queue
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from gac_core.threads import DaemonPool


class TimedCall(ABC):
    """A call that is given up after a time.

    Args:
        limit: Seconds after its beginning at which it is given up.
    """

    def __init__(self, limit: float) -> None:
        self._limit = min(limit, threading.TIMEOUT_MAX)
        self._began: float | None = None
        self._given_up = False

    @abstractmethod
    def run(self) -> None:
        """Makes the call, in the device's thread; must not raise."""

    @abstractmethod
    def give_up(self) -> None:
        """Called in the waiting thread when the call is given up; before `returned_late`."""

    @abstractmethod
    def returned_late(self) -> None:
        """Called in the device's thread when the call returns after it was given up."""

    @property
    def left(self) -> float:
        """Seconds for which it may go on, 0 or more; all of them if it has not begun."""
        return self._limit if self._began is None else max(0.0, self._began + self._limit - time.monotonic())


Finished = queue.SimpleQueue["DeviceThread"]


class DeviceThread:
    """The thread of one device. A call that is given up keeps its thread, and a new one takes over.

    Calls are started and given up by one thread at a time.

    Args:
        name: Name of the threads.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._pool = DaemonPool(name)
        # Held to begin, to end and to give up a call.
        self._lock = threading.Lock()
        self._waiting: list[TimedCall] = []
        self._running: TimedCall | None = None

    def start(self, calls: Sequence[TimedCall], finished: Finished) -> None:
        """Begins to run calls; puts itself into ``finished`` once all have ended and none was given up."""
        self._waiting = list(calls)
        self._pool.submit(self._work, finished)

    def _work(self, finished: Finished) -> None:
        while self._waiting:
            with self._lock:
                call = self._running = self._waiting.pop(0)
                call._began = time.monotonic()
            call.run()
            with self._lock:
                if not call._given_up:
                    self._running = None
            if call._given_up:
                call.returned_late()
                return
        finished.put(self)

    @property
    def left(self) -> float:
        """Seconds after which the running call, or else the next one, is to be given up at the earliest."""
        call = self._running or next(iter(self._waiting), None)
        return 0.0 if call is None else call.left

    def give_up(self, finished: Finished) -> bool:
        """Gives the running call up if its time is over; those behind it run in a new thread.

        Returns:
            False if no call is left to wait for.
        """
        with self._lock:
            call = self._running
            if call is None or call.left:
                return True
            call._given_up, self._running = True, None
            call.give_up()
        self._pool.close()
        self._pool = DaemonPool(self._name)
        if self._waiting:
            self.start(self._waiting, finished)
            return True
        return False

    def close(self) -> None:
        """Ends the thread, after the call that runs."""
        self._pool.close()


def run_calls(calls: Mapping[DeviceThread, Sequence[TimedCall]]) -> None:
    """Runs calls, at the same time on different threads; returns when each has ended or was given up."""
    finished: Finished = queue.SimpleQueue()
    for thread, own in calls.items():
        thread.start(own, finished)
    waiting = set(calls)
    while waiting:
        try:
            waiting.discard(finished.get(timeout=min(thread.left for thread in waiting)))
        except queue.Empty:
            waiting = {thread for thread in waiting if thread.give_up(finished)}
