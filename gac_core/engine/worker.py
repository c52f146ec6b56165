"""The one thread that owns all model state, and the state through which callers reach it.

Knows the engine and where each request's events go; knows nothing of prompts.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gac_core.decoding.request import Request
from gac_core.engine.engine import Engine
from gac_core.errors import EngineClosedError, EngineStuckError, GaCError, QueueFullError, quote
from gac_core.failures import caused
from gac_core.output import OutputChunk

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 30.0
"""Seconds to wait for the step that is running when an ensemble is closed."""

EXIT_GRACE = 1.0
"""Seconds after its beginning for which a step is waited for when Python exits or nobody holds the ensemble."""

# Seconds between two looks at whether the engine is stuck, while a request waits for room in the queue.
_LOOK = 1.0

Event = OutputChunk | GaCError
Sink = Callable[[Event], None]


@dataclass(frozen=True)
class _Entry:
    request: Request
    sink: Sink


class Worker:
    """Runs an engine in a thread of its own.

    A request is pending until the thread takes it over, and held until the engine has dropped it; both count towards
    the limit. One that is given up while it is pending is gone at once.

    Args:
        engine: The engine; after this only the thread touches it.
        limit: Requests that may run or wait at once.
        stuck_after: Seconds after which a step that has not returned counts as stuck.
    """

    def __init__(self, engine: Engine, limit: int, stuck_after: float = 600.0) -> None:
        self._engine = engine
        self._limit = limit
        self._stuck_after = stuck_after
        self._step_began: float | None = None
        # Guards the next four. Reentrant: a stream that is collected as garbage may give its request up anywhere.
        self._lock = threading.Condition(threading.RLock())
        self._pending: dict[str, _Entry] = {}
        self._held: dict[str, _Entry] = {}
        self._aborted: set[str] = set()
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="gac-engine", daemon=True)
        self._thread.start()

    # ---- for callers, from any thread

    @property
    def forked(self) -> bool:
        """Whether this process was forked after loading: the thread does not exist here, and locks may be held."""
        return os.getpid() != self._process

    def check_process(self) -> None:
        """Raises an `EngineClosedError` in a forked process; takes no lock."""
        if self.forked:
            # Threads do not survive a fork, so that nobody would ever answer.
            raise EngineClosedError(
                "the ensemble was loaded before this process was forked; load it in each process, not before the "
                "fork, or start processes by 'spawn'"
            )

    @property
    def closed(self) -> bool:
        """Whether no request is taken any more."""
        return self._closed or self.forked

    def submit(self, request: Request, sink: Sink, wait: bool = False, timeout: float | None = None) -> None:
        """Queues a request; its chunks, or its error, go to the sink from the engine's thread.

        Args:
            request: The request.
            sink: Where its events go.
            wait: Wait for room in the queue instead of being refused.
            timeout: Seconds to wait at most. None waits without a limit.

        Raises:
            EngineClosedError: The ensemble is closed, or was loaded before this process was forked.
            QueueFullError: As many requests as are allowed run or wait already.
            EngineStuckError: A step has been running for too long.
            TimeoutError: There was no room in time.
        """
        self.check_process()
        until = None if timeout is None else time.monotonic() + timeout
        with self._lock:
            self._refuse_if_stuck()
            while wait and not self._closed and self._full:
                left = _LOOK if until is None else min(_LOOK, until - time.monotonic())
                if left <= 0:
                    raise TimeoutError
                self._lock.wait(left)
                self._refuse_if_stuck()
            if self._closed:
                raise EngineClosedError("the ensemble is closed; load it anew")
            if self._full:
                raise QueueFullError(self._limit)
            self._pending[request.request_id] = _Entry(request, sink)
            self._lock.notify_all()

    def abort(self, request_id: str) -> None:
        """Gives a request up; its sink hears nothing more. Unknown ids are no error.

        One that the engine holds keeps its place in the queue until it is dropped, before the next step.
        """
        if self.forked:
            return
        with self._lock:
            self._pending.pop(request_id, None)
            if request_id in self._held:
                self._aborted.add(request_id)
            self._lock.notify_all()

    def running_member(self) -> str | None:
        """Name of the member whose forward has been running longest; None if there is none."""
        return (self._running_step() or (None, 0.0))[0]

    def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Stops the thread after its step; requests still there get an `EngineClosedError`.

        Args:
            timeout: Seconds to wait for the step. After it, requests are ended all the same, and the thread ends when
                the step returns. None waits without a limit. In a forked process nothing is waited for.
        """
        if self.forked:
            return
        with self._lock:
            self._closed = True
            self._lock.notify_all()
        if threading.current_thread() is self._thread:
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            member, seconds = self._running_step() or (None, 0.0)
            place = "the engine" if member is None else f"the forward of member {quote(member)}"
            since = f"has been running for {seconds:.1f} s and did not return within {timeout} s of closing"
            logger.warning("%s %s; the engine's thread ends when it returns", place, since)
            self._end_all(f"the ensemble was closed before the request was done: {place} {since}")

    def leave(self) -> None:
        """`close` for when Python exits: a step that has just begun may end, one that hangs is not waited for."""
        if self.forked:
            return
        step = self._running_step()
        # A thread that comes back into Python while it shuts down may bring the process down.
        self.close(max(0.0, EXIT_GRACE - (0.0 if step is None else step[1])))

    # ---- the thread's own

    @property
    def _full(self) -> bool:
        return len(self._pending) + len(self._held) >= self._limit

    def _running_step(self) -> tuple[str | None, float] | None:
        """The member whose forward has been running longest, and seconds since the step began; None between steps."""
        began = self._step_began
        if began is None:
            return None
        forwards = self._engine.running_forwards()
        member = max(forwards, key=lambda forward: forward[1])[0] if forwards else None
        return member, time.monotonic() - began

    def _refuse_if_stuck(self) -> None:
        step = self._running_step()
        if step is not None and step[1] > self._stuck_after and not self._closed:
            raise EngineStuckError(*step)

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            # Whatever ended it, nobody shall wait for an answer that nobody writes any more.
            with self._lock:
                self._closed = True
                self._lock.notify_all()
            self._end_all("the ensemble was closed before the request was done")
            self._engine.close()

    def _serve(self) -> None:
        while self._take_over():
            self._step_began = time.monotonic()
            try:
                events = self._engine.step()
            except BaseException as error:
                # A defect of ours, not of a request: tell everyone, and stay alive for the next ones. Also at
                # SystemExit and its like, which end this thread alone, never the process.
                logger.exception("the engine's step failed")
                self._fail_all(error)
                continue
            finally:
                self._step_began = None
            for request_id, event in events:
                self._tell(request_id, event)

    def _take_over(self) -> bool:
        """Hands the engine what changed, waiting for something to do; False once it is time to stop."""
        with self._lock:
            while not (self._closed or self._pending or self._aborted or self._engine.busy):
                self._lock.wait()
            if self._closed:
                return False
            self._held.update(self._pending)
            added, self._pending = self._pending, {}
            aborted, self._aborted = self._aborted, set()
        for request_id in aborted:
            self._drop(request_id)
        for entry in added.values():
            self._engine.add_request(entry.request)
        return True

    def _tell(self, request_id: str, event: Event) -> None:
        """Passes an event on; a sink that raises ends its own request."""
        final = isinstance(event, GaCError) or event.output is not None
        with self._lock:
            entry = None if request_id in self._aborted else self._held.get(request_id)
        if final:
            self._forget(request_id)
        if entry is None:
            return
        if isinstance(event, GaCError):
            _report(entry.request, event)
        if not self._send(entry, event) and not final:
            self._drop(request_id)

    def _send(self, entry: _Entry, event: Event) -> bool:
        """Calls a sink; False if it raised."""
        try:
            entry.sink(event)
        except BaseException:
            request = entry.request
            logger.exception(
                "request %s: its receiver raised", request.label, extra={"request_id": request.label, "member": None}
            )
            return False
        return True

    def _drop(self, request_id: str) -> None:
        """Takes a request out of the engine and frees its place."""
        try:
            self._engine.abort_request(request_id)
        except BaseException:
            logger.exception("a request could not be dropped")
        self._forget(request_id)

    def _forget(self, request_id: str) -> None:
        with self._lock:
            self._held.pop(request_id, None)
            self._aborted.discard(request_id)
            self._lock.notify_all()

    def _fail_all(self, error: BaseException) -> None:
        """Ends all requests that the engine holds."""
        with self._lock:
            held = dict(self._held)
            aborted = set(self._aborted)
        for request_id, entry in held.items():
            self._drop(request_id)
            if request_id in aborted:
                continue
            failed = caused(GaCError(f"the engine's step failed ({type(error).__name__}: {error})"), error)
            _report(entry.request, failed)
            self._send(entry, failed)

    def _end_all(self, reason: str) -> None:
        """Sends an error to whoever waits, without touching the engine; called once no request is taken any more."""
        with self._lock:
            held = [entry for request_id, entry in self._held.items() if request_id not in self._aborted]
            entries = [*held, *self._pending.values()]
            self._held, self._pending, self._aborted = {}, {}, set()
            self._lock.notify_all()
        for entry in entries:
            failed = EngineClosedError(reason)
            _report(entry.request, failed)
            self._send(entry, failed)


def _report(request: Request, error: GaCError) -> None:
    """One record for a request that failed, without any text of it; the error gets the request's id."""
    error.request_id = request.label
    member, cause = getattr(error, "member", None), error.__cause__
    logger.log(
        logging.WARNING if isinstance(error, EngineClosedError) else logging.ERROR,
        "request %s failed: %s%s%s",
        request.label,
        type(error).__name__,
        "" if member is None else f" of member {member!r}",
        "" if cause is None else f", caused by {type(cause).__name__}",
        extra={"request_id": request.label, "member": member},
        exc_info=cause,
    )
