"""A request's deadline, counted from the call, and waiting that ends with it."""

from __future__ import annotations

import asyncio
import queue
import threading
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from contextvars import copy_context
from typing import TypeVar

R = TypeVar("R")


class Deadline:
    """The deadline of a call.

    Args:
        timeout: Seconds from now. None: no deadline.
    """

    def __init__(self, timeout: float | None) -> None:
        self.timeout = timeout
        self._began = time.monotonic()

    @property
    def spent(self) -> float:
        """Seconds since the call."""
        return time.monotonic() - self._began

    def left(self) -> float | None:
        """Returns the seconds left, 0 or more; None without a deadline."""
        return None if self.timeout is None else max(0.0, self.timeout - self.spent)

    def passed(self, at: float | None = None) -> bool:
        """Returns whether the deadline had passed at a time of `time.monotonic`; default now."""
        moment = time.monotonic() if at is None else at
        return self.timeout is not None and moment - self._began >= self.timeout

    def within(self, call: Callable[[], R]) -> R:
        """Calls a function that cannot be interrupted; with a deadline in a thread, which goes on after it.

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
        while not self.passed():
            # A wait may end early.
            with suppress(queue.Empty):
                value, error = results.get(timeout=self.left())
                if error is not None:
                    raise error
                return value  # type: ignore[return-value]
        raise TimeoutError

    async def wait(self, awaitable: Awaitable[R]) -> R:
        """Awaits something.

        Raises:
            TimeoutError: It was not done in time; it is cancelled.
        """
        if self.timeout is None:
            return await awaitable
        return await asyncio.wait_for(awaitable, self.left())
