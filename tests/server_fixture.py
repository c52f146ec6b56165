"""A server on the embedded members, in a thread of the tests' process.

What the server needs is imported when one is started: most tests start none.
"""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import httpx
import pytest
from holding import idle

if TYPE_CHECKING:
    from gac_core.server.catalog import Catalog
    from gac_core.server.record import Observer, RequestRecord
    from gac_core.server.settings import ServerSettings


@dataclass(frozen=True)
class RunningServer:
    """A server that listens.

    Attributes:
        url: Its address, such as ``http://127.0.0.1:1234``.
        records: The records of the requests so far, oldest first.
        app: The application.
        connections: Those that are open.
    """

    url: str
    records: list[RequestRecord]
    app: object
    connections: Collection[object]

    def record(self, request_id: str, seconds: float = 10.0) -> RequestRecord:
        """Returns the record of a request; waits until there is one."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            for record in reversed(self.records):
                if record.request_id == request_id:
                    return record
            time.sleep(0.005)
        raise TimeoutError(f"no record of request {request_id}")

    def last_threshold_is(self, threshold: float | None, seconds: float = 10.0) -> bool:
        """Whether the last request has a threshold; waits for its record, which is made after its answer."""
        end = time.monotonic() + seconds
        while self.records[-1].outputs[0].stats.settings.threshold != threshold and time.monotonic() < end:
            time.sleep(0.005)
        return self.records[-1].outputs[0].stats.settings.threshold == threshold


@contextmanager
def running(
    catalog: Catalog,
    settings: ServerSettings | None = None,
    observers: Sequence[Observer] = (),
    send_bytes: int | None = None,
) -> Iterator[RunningServer]:
    """Runs a server on a free port of the loopback address until the block ends.

    Args:
        catalog: The models.
        settings: The settings. Default `ServerSettings()`.
        observers: Called with the record of each request. Default none.
        send_bytes: Size of the send buffer of each connection. Default: the system's, some megabytes.
    """
    import uvicorn

    from gac_core.server.app import create_app
    from gac_core.server.lifecycle.connections import LimitedProtocol
    from gac_core.server.settings import ServerSettings

    records: list[RequestRecord] = []
    app = create_app(catalog, settings or ServerSettings(), [records.append, *observers])
    config = uvicorn.Config(
        app, http=LimitedProtocol, ws="none", log_level="warning", lifespan="on", timeout_graceful_shutdown=5
    )
    server = uvicorn.Server(config)
    listening = socket.create_server(("127.0.0.1", 0))
    if send_bytes is not None:
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_bytes)
    thread = threading.Thread(target=server.run, args=([listening],), name="test-server")
    thread.start()
    try:
        end = time.monotonic() + 30
        while not server.started:
            if not thread.is_alive() or time.monotonic() > end:
                raise RuntimeError("the server did not start")
            time.sleep(0.005)
        url = f"http://127.0.0.1:{listening.getsockname()[1]}"
        yield RunningServer(url, records, app, server.server_state.connections)
    finally:
        server.should_exit = True
        thread.join()
        listening.close()


@contextmanager
def served(catalog: Catalog, settings: ServerSettings | None = None) -> Iterator[str]:
    """Runs a server and yields its address."""
    with running(catalog, settings) as server:
        yield server.url


@pytest.fixture(scope="session")
def server(ensemble) -> Iterator[RunningServer]:
    """A server of the three embedded members as the ensemble ``gac``."""
    from gac_core.server.catalog import Catalog

    with running(Catalog({"gac": ensemble})) as started:
        yield started


SHORT = {"model": "gac", "prompt": "Where", "max_tokens": 4, "temperature": 0}


@pytest.fixture(scope="module")
def short_text(ensemble) -> str:
    """The answer to `SHORT`."""
    return ensemble.generate("Where", max_tokens=4).text


@pytest.fixture
def works_afterwards(url, ensemble, short_text) -> Iterator[None]:
    """After the test the engine is idle and the server at ``url`` answers as before."""
    yield
    assert idle(ensemble)
    answer = httpx.post(f"{url}/v1/completions", json=SHORT, timeout=30)
    assert answer.json()["choices"][0]["text"] == short_text
