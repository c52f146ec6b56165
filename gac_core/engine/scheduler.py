"""Which requests run together: first come, first served, up to a bound per ensemble."""

from __future__ import annotations

from collections import Counter, deque

from gac_core.decoding.request import Request


class Scheduler:
    """Holds the waiting and the running requests; they join and leave between steps."""

    def __init__(self) -> None:
        self._limits: dict[str, int] = {}
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Request] = {}

    def set_limit(self, ensemble_id: str, max_batch_size: int) -> None:
        """Sets how many requests of an ensemble run at once at most; others wait.

        A request counts once for each prompt that a member reads (`Request.width`); a larger one runs alone.
        """
        self._limits[ensemble_id] = max_batch_size

    def remove_limit(self, ensemble_id: str) -> None:
        """Forgets an ensemble without requests."""
        self._limits.pop(ensemble_id, None)

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue."""
        self._waiting.append(request)

    def remove(self, request_id: str) -> Request | None:
        """Removes a request, waiting or running; returns it, or None if there is none of this id."""
        request = self._running.pop(request_id, None)
        if request is None:
            request = next((waiting for waiting in self._waiting if waiting.request_id == request_id), None)
            if request is not None:
                self._waiting.remove(request)
        return request

    def schedule(self) -> list[Request]:
        """Moves waiting requests to the running ones while their ensemble has room, and returns all that run."""
        running: Counter[str] = Counter()
        for request in self._running.values():
            running[request.ensemble_id] += request.width
        still_waiting: deque[Request] = deque()
        full: set[str] = set()
        for request in self._waiting:
            used = running[request.ensemble_id]
            fits = not used or used + request.width <= self._limits[request.ensemble_id]
            if fits and request.ensemble_id not in full:
                running[request.ensemble_id] += request.width
                self._running[request.request_id] = request
            else:
                # Later ones wait as well, or a wide one might never find room.
                full.add(request.ensemble_id)
                still_waiting.append(request)
        self._waiting = still_waiting
        return list(self._running.values())

    def running(self) -> list[Request]:
        """Returns the requests that run. Thread-safe."""
        return list(self._running.values())

    def waiting(self) -> list[Request]:
        """Returns the requests that wait. Thread-safe."""
        return list(self._waiting)

    def all(self) -> list[Request]:
        """Returns every request, running ones first."""
        return [*self._running.values(), *self._waiting]
