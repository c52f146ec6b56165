"""The one thread that owns all model state, and the mailbox through which callers reach it.

Knows the engine and where each request's events go; knows nothing of prompts.
"""

from __future__ import annotations

import logging
import os
import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass

from gac_core.engine import Engine
from gac_core.errors import EngineClosedError, GaCError, QueueFullError
from gac_core.output import OutputChunk
from gac_core.request import Request

logger = logging.getLogger(__name__)

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
    """

    def __init__(self, engine: Engine, limit: int) -> None:
        self._engine = engine
        self._limit = limit
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
        """
        if os.getpid() != self._process:
            # Threads do not survive a fork, so that nobody would ever answer.
            raise EngineClosedError(
                "the ensemble was loaded before this process was forked; load it in each process, not before the "
                "fork, or start processes by 'spawn'"
            )
        with self._lock:
            while wait and not self._closed and len(self._open) >= self._limit:
                self._lock.wait()
            if self._closed:
                raise EngineClosedError("the ensemble is closed; load it anew")
            if len(self._open) >= self._limit:
                raise QueueFullError(self._limit)
            self._open.add(request.request_id)
            self._inbox.put(_Add(request, sink))

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

    def close(self) -> None:
        """Stops the thread; requests still there get an `EngineClosedError`."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self._lock.notify_all()
            self._inbox.put(None)
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            self._serve()
        finally:
            # Whatever ended it, nobody shall wait for an answer that nobody writes any more.
            with self._lock:
                self._closed = True
                self._lock.notify_all()
            closed = EngineClosedError("the ensemble was closed before the request was done")
            self._fail_all(closed)
            while not self._inbox.empty():
                mail = self._inbox.get()
                if isinstance(mail, _Add):
                    mail.sink(closed)
            self._engine.close()

    def _serve(self) -> None:
        while self._read_mail():
            try:
                events = self._engine.step()
            except Exception as error:
                # A defect of ours, not of a request: tell everyone, and stay alive for the next ones.
                logger.exception("the engine's step failed")
                self._fail_all(GaCError(f"the engine's step failed ({type(error).__name__}: {error})"))
                continue
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
        sinks, self._sinks = self._sinks, {}
        for request_id, sink in sinks.items():
            self._done(request_id)
            sink(error)
        for request_id in sinks:
            try:
                self._engine.abort_request(request_id)
            except Exception:
                logger.exception("a request could not be dropped")
