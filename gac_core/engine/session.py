"""An ensemble's access to an engine that it may share with other ensembles."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from gac_core.engine.mailbox import Client, Entry, Sink
from gac_core.events import Listener
from gac_core.health import EnsembleHealth

if TYPE_CHECKING:
    from gac_core.decoding.request import Request
    from gac_core.engine.worker import Worker

CLOSE_TIMEOUT = 30.0
"""Seconds to wait for the running step when an ensemble is closed."""


class Session:
    """One ensemble's requests, limits and members in an engine. Thread-safe.

    Args:
        worker: Runs the engine.
        client: The ensemble, which has joined the worker.
    """

    def __init__(self, worker: Worker, client: Client) -> None:
        self.worker = worker
        self.client = client

    @property
    def closed(self) -> bool:
        """Whether no request is accepted any more."""
        return self.client.closed or self.worker.closed

    def check_process(self) -> None:
        """Raises an `EngineClosedError` in a forked process; takes no lock."""
        self.worker.check_process()

    def submit(self, request: Request, sink: Sink, wait: bool = False, timeout: float | None = None) -> None:
        """Queues a request; its chunks, or its error, are passed to the sink in the engine's thread.

        Args:
            request: The request.
            sink: Receives its events.
            wait: Wait for a place in the queue instead of being refused.
            timeout: Seconds to wait at most. None waits without a limit.

        Raises:
            EngineClosedError: The ensemble is closed, or was loaded before this process was forked.
            QueueFullError: As many of the ensemble's requests as are allowed run or wait already.
            EngineStuckError: A step has been running for too long.
            RequestError: This is called by a listener.
            TimeoutError: There was no place in time.
        """
        self.worker.submit(Entry(request, sink, self.client), wait, timeout)

    def abort(self, request_id: str) -> None:
        """Gives up a request; its sink receives nothing more. Unknown ids are no error."""
        self.worker.abort(request_id)

    def running_member(self) -> str | None:
        """Returns the name of the member whose forward has been running longest; None between forwards."""
        return (self.worker.running_step(self.client) or (None, 0.0))[0]

    def health(self) -> EnsembleHealth:
        """Returns the state of the ensemble; does not wait for the engine."""
        return self.worker.health(self.client)

    def add_listener(self, listener: Listener) -> Callable[[], None]:
        """Adds a listener for the ensemble's events; returns a function that removes it.

        Raises:
            EngineClosedError: The ensemble was loaded before this process was forked.
        """
        self.check_process()
        return self.worker.monitor.add(self.client, listener)

    def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Ends the ensemble's requests with an `EngineClosedError` and gives its members back.

        Args:
            timeout: Seconds to wait for the running step. After it, the requests are ended all the same, and the
                members are given back when the step returns. None waits without a limit.
        """
        self.worker.leave(self.client, timeout)

    def finalize(self) -> None:
        """Closes without waiting for a step that hangs: for ensembles that are garbage, and for Python's exit."""
        self.worker.finalize(self.client)
