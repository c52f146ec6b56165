"""By when a request must be answered, counted from the call; waiting no longer than that.

Knows clocks and threads; knows nothing of requests.
"""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from contextvars import copy_context
from typing import TypeVar

R = TypeVar("R")


class Deadline:
    """When a call's time is up.

    Args:
        timeout: Seconds from now. None: never.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the call."""
        return time.monotonic() - self._began

    def left(self) -> float | None:
        """Seconds that are left, 0 or more; None without a limit."""
        return None if self.timeout is None else max(0.0, self.timeout - self.spent)

    def passed(self, at: float | None = None) -> bool:
        """Whether the time was up at a moment of `time.monotonic`; default now."""
        moment = time.monotonic() if at is None else at
        return self.timeout is not None and moment - self._began >= self.timeout

    def within(self, call: Callable[[], R]) -> R:
        """Calls something that cannot be interrupted; with a limit in a thread of its own, which is left behind.

        Raises:
            TimeoutError: It did not return in time.
        """
        if self.timeout is None:
            return call()
        context = copy_context()
        results: queue.SimpleQueue[tuple[R | None, BaseException | None]] = queue.SimpleQueue()

        def run() -> None:
            try:
                results.put((context.run(call), None))
            except BaseException as error:
                results.put((None, error))

        threading.Thread(target=run, name="gac-timed", daemon=True).start()
        try:
            value, error = results.get(timeout=self.left())
        except queue.Empty:
            raise TimeoutError from None
        if error is not None:
            raise error
        return value  # type: ignore[return-value]

    async def wait(self, awaitable: Awaitable[R]) -> R:
        """Awaits something.

        Raises:
            TimeoutError: It was not done in time; it is cancelled.
        """
        if self.timeout is None:
            return await awaitable
        return await asyncio.wait_for(awaitable, self.left())
