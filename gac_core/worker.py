"""The one thread that owns all model state, and the mailbox through which callers reach it.

Knows the engine and where each request's events go; knows nothing of prompts.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from gac_core.engine import Engine
from gac_core.errors import EngineClosedError, EngineStuckError, GaCError, QueueFullError, quote
from gac_core.output import OutputChunk
from gac_core.request import Request

logger = logging.getLogger(__name__)

CLOSE_TIMEOUT = 30.0
"""Seconds to wait for the step that is running when an ensemble is closed."""

# Seconds between two looks at whether the engine is stuck, while a request waits for room in the queue.
_LOOK = 1.0

Event = OutputChunk | GaCError
Sink = Callable[[Event], None]


@dataclass(frozen=True)
class _Add:
    request: Request
    sink: Sink


@dataclass(frozen=True)
class _Abort:
    request_id: str


class Worker:
    """Runs an engine in a thread of its own.

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
        self._open: set[str] = set()
        self._inbox: queue.SimpleQueue[_Add | _Abort | None] = queue.SimpleQueue()
        self._sinks: dict[str, Sink] = {}
        self._lock = threading.Condition()
        self._closed = False
        self._process = os.getpid()
        self._thread = threading.Thread(target=self._run, name="gac-engine", daemon=True)
        self._thread.start()

    def submit(self, request: Request, sink: Sink, wait: bool = False) -> None:
        """Queues a request; its chunks, or its error, go to the sink from the engine's thread.

        Args:
            request: The request.
            sink: Where its events go.
            wait: Wait for room in the queue instead of being refused.

        Raises:
            EngineClosedError: The ensemble is closed, or was loaded before this process was forked.
            QueueFullError: As many requests as are allowed run or wait already.
            EngineStuckError: A step has been running for too long.
        """
        if os.getpid() != self._process:
            # Threads do not survive a fork, so that nobody would ever answer.
            raise EngineClosedError(
                "the ensemble was loaded before this process was forked; load it in each process, not before the "
                "fork, or start processes by 'spawn'"
            )
        with self._lock:
            self._refuse_if_stuck()
            while wait and not self._closed and len(self._open) >= self._limit:
                self._lock.wait(_LOOK)
                self._refuse_if_stuck()
            if self._closed:
                raise EngineClosedError("the ensemble is closed; load it anew")
            if len(self._open) >= self._limit:
                raise QueueFullError(self._limit)
            self._open.add(request.request_id)
            self._inbox.put(_Add(request, sink))

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

    @property
    def closed(self) -> bool:
        """Whether no request is taken any more."""
        return self._closed

    def abort(self, request_id: str) -> None:
        """Drops a request before the next step; its sink hears nothing more. Unknown ids are no error."""
        self._done(request_id)
        self._inbox.put(_Abort(request_id))

    def _done(self, request_id: str) -> None:
        with self._lock:
            self._open.discard(request_id)
            self._lock.notify_all()

    def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Stops the thread after its step; requests still there get an `EngineClosedError`.

        Args:
            timeout: Seconds to wait for the step. After it, requests are ended all the same, and the thread ends when
                the step returns. None waits without a limit.
        """
        with self._lock:
            if not self._closed:
                self._closed = True
                self._lock.notify_all()
                self._inbox.put(None)
        if threading.current_thread() is self._thread:
            return
        self._thread.join(timeout)
        if self._thread.is_alive():
            member, seconds = self._running_step() or (None, 0.0)
            place = "the engine" if member is None else f"the forward of member {quote(member)}"
            since = f"has been running for {seconds:.1f} s and did not return within {timeout} s of closing"
            logger.warning("%s %s; the engine's thread ends when it returns", place, since)
            self._tell_all(EngineClosedError(f"the ensemble was closed before the request was done: {place} {since}"))

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            # Whatever ended it, nobody shall wait for an answer that nobody writes any more.
            with self._lock:
                self._closed = True
                self._lock.notify_all()
            self._tell_all(EngineClosedError("the ensemble was closed before the request was done"))
            self._engine.close()

    def _serve(self) -> None:
        while self._read_mail():
            self._step_began = time.monotonic()
            try:
                events = self._engine.step()
            except Exception as error:
                # A defect of ours, not of a request: tell everyone, and stay alive for the next ones.
                logger.exception("the engine's step failed")
                self._fail_all(GaCError(f"the engine's step failed ({type(error).__name__}: {error})"))
                continue
            finally:
                self._step_began = None
            for request_id, event in events:
                sink = self._sinks.get(request_id)
                if isinstance(event, GaCError) or event.output is not None:
                    self._sinks.pop(request_id, None)
                    self._done(request_id)
                if sink is not None:
                    sink(event)

    def _read_mail(self) -> bool:
        """Takes all mail, waiting for some if there is nothing to do; False once it is time to stop."""
        while True:
            try:
                mail = self._inbox.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if mail is None:
                return False
            if isinstance(mail, _Abort):
                self._sinks.pop(mail.request_id, None)
                self._engine.abort_request(mail.request_id)
            else:
                self._sinks[mail.request.request_id] = mail.sink
                self._engine.add_request(mail.request)

    def _fail_all(self, error: GaCError) -> None:
        """Ends all requests that the engine holds."""
        sinks, self._sinks = self._sinks, {}
        for request_id, sink in sinks.items():
            self._done(request_id)
            sink(error)
        for request_id in sinks:
            try:
                self._engine.abort_request(request_id)
            except Exception:
                logger.exception("a request could not be dropped")

    def _tell_all(self, error: EngineClosedError) -> None:
        """Sends an error to whoever waits, without touching the engine; called once no request is taken any more."""
        sinks, self._sinks = self._sinks, {}
        with suppress(queue.Empty):
            while True:
                mail = self._inbox.get_nowait()
                if isinstance(mail, _Add):
                    sinks[mail.request.request_id] = mail.sink
        # The thread may still be in a step, and ends at this.
        self._inbox.put(None)
        for request_id, sink in sinks.items():
            self._done(request_id)
            sink(error)
