"""`DrainingServer`: uvicorn's server, which finishes its requests within a time limit; `Closing` ends what is left."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import uvicorn
from fastapi import FastAPI

from gac_core.ensemble import Ensemble
from gac_core.server.lifecycle.connections import LimitedProtocol

logger = logging.getLogger(__name__)

STEP_SECONDS = 5.0
"""How long a running step may take to end when its ensemble is closed."""
SEND_SECONDS = 5.0
"""How long clients may take to receive the errors after that."""
KEEP_ALIVE_SECONDS = 75
"""How long an idle connection stays open: longer than those of common clients and load balancers."""


class Closing:
    """Closes ensembles, all at the same time, since the step of one may hang.

    Args:
        ensembles: The ensembles.
    """

    def __init__(self, ensembles: Sequence[Ensemble]) -> None:
        self._ensembles = ensembles
        self._threads: list[threading.Thread] = []

    def start(self) -> None:
        """Ends the requests of all ensembles with an `EngineClosedError`; returns at once."""
        if not self._threads:
            self._threads = [
                threading.Thread(target=ensemble.close, args=(STEP_SECONDS,), name="gac-close", daemon=True)
                for ensemble in self._ensembles
            ]
            for thread in self._threads:
                thread.start()

    def finish(self) -> None:
        """Waits until all are closed; no longer than a running step may take."""
        self.start()
        deadline = time.monotonic() + STEP_SECONDS + 1
        for thread in self._threads:
            thread.join(max(0.0, deadline - time.monotonic()))


class DrainingServer(uvicorn.Server):
    """Serves an application until `begin_drain`, then finishes its requests.

    Args:
        app: The application, with a `Drain` as ``app.state.drain``.
        drain_timeout: Seconds after which the requests that are left end with an error.
        closing: Ends them.
        started: Called once requests are accepted.

    Attributes:
        status: Exit status of the process: 0, or 1 if requests were left at the end of the drain.
    """

    def __init__(self, app: FastAPI, drain_timeout: float, closing: Closing, started: Callable[[], None]) -> None:
        config = uvicorn.Config(
            app,
            http=LimitedProtocol,
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            proxy_headers=False,
            server_header=False,
            timeout_keep_alive=KEEP_ALIVE_SECONDS,
            timeout_graceful_shutdown=math.ceil(drain_timeout + STEP_SECONDS + SEND_SECONDS),
        )
        super().__init__(config)
        self.status = 0
        self._drain = app.state.drain
        self._drain_timeout = drain_timeout
        self._closing = closing
        self._started = started

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leaves signals to the process: uvicorn would end it by the signal, not with an exit status."""
        yield

    def begin_drain(self) -> None:
        """Refuses new requests from now on; the socket is closed within 0.1 s. May be called by a signal handler."""
        self._drain.draining = True
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts connections."""
        await super().startup(sockets)
        self._started()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Closes the socket and idle connections, and waits for the others."""
        self._drain.draining = True
        running = len(self.server_state.tasks)
        logger.info("draining: %d requests run or wait, for %g s at most", running, self._drain_timeout)
        timer = asyncio.get_running_loop().call_later(self._drain_timeout, self._cut_off)
        await super().shutdown(sockets)
        timer.cancel()

    def _cut_off(self) -> None:
        running = len(self.server_state.tasks)
        if running:
            self.status = 1
            logger.warning("drain timeout: %d requests end with an error", running)
        self._closing.start()
