"""Which requests run together: first come, first served, up to a bound; they join and leave between steps.

Knows requests only by their id and order.
"""

from __future__ import annotations

from collections import deque

from gac_core.decoding.request import Request


class Scheduler:
    """Holds the waiting and the running requests.

    Args:
        max_batch_size: Requests that run at once at most.
    """

    def __init__(self, max_batch_size: int) -> None:
        self._max_batch_size = max_batch_size
        self._waiting: deque[Request] = deque()
        self._running: dict[str, Request] = {}

    def add(self, request: Request) -> None:
        """Puts a request at the end of the queue."""
        self._waiting.append(request)

    def remove(self, request_id: str) -> Request | None:
        """Takes a request out, waiting or running; returns it, or None if it is not here."""
        request = self._running.pop(request_id, None)
        if request is None:
            request = next((waiting for waiting in self._waiting if waiting.request_id == request_id), None)
            if request is not None:
                self._waiting.remove(request)
        return request

    def schedule(self) -> list[Request]:
        """Lets waiting requests join while there is room, and returns all that run."""
        while self._waiting and len(self._running) < self._max_batch_size:
            request = self._waiting.popleft()
            self._running[request.request_id] = request
        return list(self._running.values())

    def all(self) -> list[Request]:
        """Every request here."""
        return [*self._running.values(), *self._waiting]
