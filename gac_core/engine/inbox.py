"""`Inbox`: receives events from an engine's thread in the thread of an event loop.

Waking a loop from another thread costs more than handing an event over. A step has events for many requests, so all
inboxes of a loop are filled by one call in it, however many events came since the last.
"""

from __future__ import annotations

import asyncio
from collections import deque
from typing import Generic, TypeVar
from weakref import WeakValueDictionary

T = TypeVar("T")


class Inbox(Generic[T]):
    """The events of one reader, to be made and read in the thread of a running event loop."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._carrier = _carrier(self._loop)
        self._events: deque[T] = deque()
        self._waiter: asyncio.Future[None] | None = None

    def put(self, event: T) -> None:
        """Adds an event; may be called from any thread. Does nothing if the loop is closed."""
        self._carrier.put(self, event)

    def __len__(self) -> int:
        """The events that have arrived."""
        return len(self._events)

    def pop(self) -> T:
        """Removes and returns the oldest event that has arrived."""
        return self._events.popleft()

    @property
    def awaited(self) -> bool:
        """Whether the reader waits."""
        return self._waiter is not None

    async def wait(self, seconds: float | None) -> None:
        """Returns when there is an event, after `wake`, or when some time has passed; may return early.

        Args:
            seconds: How long to wait; None waits without a limit.
        """
        if self._events:
            return
        assert self._waiter is None, "an inbox has one reader"
        waiter = self._waiter = self._loop.create_future()
        # Cheaper than `asyncio.wait_for`, which runs a task for each wait.
        timer = None if seconds is None else self._loop.call_later(seconds, self.wake)
        try:
            await waiter
        finally:
            self._waiter = None
            if timer is not None:
                timer.cancel()

    def receive(self, event: T) -> None:
        """Adds an event in the loop's thread."""
        self._events.append(event)
        self.wake()

    def wake(self) -> None:
        """Ends the reader's wait, in the loop's thread."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


class _Carrier:
    """Hands events over to the inboxes of one event loop.

    Args:
        loop: The loop.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._events: deque[tuple[Inbox[object], object]] = deque()
        self._called = False

    def put(self, inbox: Inbox[T], event: T) -> None:
        self._events.append((inbox, event))  # type: ignore[arg-type]
        # The flag is cleared before events are taken, so that an event that is added after it was read is taken.
        if not self._called:
            self._called = True
            try:
                self._loop.call_soon_threadsafe(self._hand_over)
            except RuntimeError:
                # The loop is closed; no one reads the events.
                self._events.clear()
                self._called = False

    def _hand_over(self) -> None:
        self._called = False
        while self._events:
            inbox, event = self._events.popleft()
            inbox.receive(event)


# Weak values: a carrier, which references its loop, lives as long as the loop's inboxes.
_carriers: WeakValueDictionary[asyncio.AbstractEventLoop, _Carrier] = WeakValueDictionary()


def _carrier(loop: asyncio.AbstractEventLoop) -> _Carrier:
    """Returns the carrier of a loop; called in the loop's thread."""
    carrier = _carriers.get(loop)
    if carrier is None:
        carrier = _carriers[loop] = _Carrier(loop)
    return carrier
