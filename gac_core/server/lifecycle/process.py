"""The process of a server: its socket, its models, its signals and its end."""

from __future__ import annotations

import atexit
import logging
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from gac_core.config import EnsembleConfig
from gac_core.ensemble import Ensemble
from gac_core.errors import ConfigError, quote
from gac_core.server.app import create_app
from gac_core.server.catalog import Catalog
from gac_core.server.lifecycle.draining_server import Closing, DrainingServer
from gac_core.server.record import Observer
from gac_core.server.settings import ServerSettings
from gac_core.server.telemetry.logs import RequestLog

if TYPE_CHECKING:
    from gac_core.server.telemetry.tracing import Tracing

logger = logging.getLogger(__name__)

EXIT_SECONDS = 5.0
"""How long exit handlers may take after everything is closed."""


def serve(
    configs: Mapping[str, EnsembleConfig], settings: ServerSettings, started: Callable[[str, Catalog], None]
) -> int:
    """Loads ensembles and serves them until SIGTERM or SIGINT; to be called in the main thread.

    The first signal starts the drain: new requests are refused, and those that run or wait go on for
    ``settings.drain_timeout`` seconds; what is left then ends with an error. A second signal, or one while models load,
    ends the process at once, with the exit status 128 plus its number.

    Args:
        configs: The ensembles by name; they share models.
        settings: Address, keys, limits and logs.
        started: Called with the URL and the catalog once requests are accepted.

    Returns:
        The exit status: 0, or 1 if requests were cut off at the end of the drain.

    Raises:
        ConfigError: The address cannot be bound to, an extra is missing, or a setting is wrong.
        ModelLoadError: A model cannot be loaded.
    """
    signals = Signals()
    signals.install()
    with ExitStack() as stack:
        listener = bound_socket(settings.host, settings.port)
        stack.callback(listener.close)
        observers: list[Observer] = [RequestLog(settings.log_prompts)]
        tracing = _tracing(settings)
        if tracing is not None:
            stack.callback(tracing.close)
            observers.append(tracing.observe)
        ensembles: list[Ensemble] = []
        closing = Closing(ensembles)
        stack.callback(closing.finish)
        for config in configs.values():
            ensembles.append(Ensemble.from_config(config))
            # Ray has replaced the handlers where it was started.
            signals.install()
        catalog = Catalog(dict(zip(configs, ensembles, strict=True)))
        app = create_app(catalog, settings, observers)
        if tracing is not None:
            tracing.install(app)
        server = DrainingServer(app, settings.drain_timeout, closing, lambda: started(url_of(listener), catalog))
        signals.begin_drain = server.begin_drain
        try:
            server.run([listener])
        except OSError as error:
            raise _cannot_listen(settings.host, settings.port, error) from error
    logger.info("ended with status %d", server.status)
    return server.status


class Signals:
    """What SIGTERM and SIGINT do.

    Attributes:
        begin_drain: Called by the first signal. None (default), while there is nothing to finish: it ends the process.
    """

    def __init__(self) -> None:
        self.begin_drain: Callable[[], None] | None = None
        self._received = False

    def install(self) -> None:
        """Replaces the handlers of both signals."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.begin_drain is None or self._received:
            # Not by an exception: threads that load models or run forwards may not return.
            os.write(2, f"gac serve: ended by {signal.Signals(number).name}\n".encode())
            os._exit(128 + number)
        self._received = True
        self.begin_drain()


def bound_socket(host: str, port: int) -> socket.socket:
    """Returns a TCP socket that is bound and does not listen yet, so that an address in use is noticed at once.

    Args:
        host: Address or name; of the addresses of a name the first one, IPv4 before IPv6.
        port: 0 takes a free one.

    Raises:
        ConfigError: The address cannot be bound to.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = min(found, key=lambda each: each[0] != socket.AF_INET)
        bound = socket.socket(family, kind, protocol)
    except OSError as error:
        raise _cannot_listen(host, port, error) from error
    try:
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(address)
    except OSError as error:
        bound.close()
        raise _cannot_listen(host, port, error) from error
    return bound


def _cannot_listen(host: str, port: int, error: OSError) -> ConfigError:
    reason = error.strerror or str(error)
    return ConfigError(f"cannot listen on host={quote(host)}, port={port}: {reason}; give another --host or --port")


def url_of(listener: socket.socket) -> str:
    """Returns the URL of a socket."""
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _tracing(settings: ServerSettings) -> Tracing | None:
    if settings.otlp_endpoint is None:
        return None
    try:
        from gac_core.server.telemetry.tracing import Tracing
    except ImportError as error:
        raise ConfigError(
            f"traces (--otlp-endpoint) need the extra otel: pip install 'gac-ensemble[otel]' ({error})"
        ) from error
    return Tracing.to_collector(settings.otlp_endpoint, settings.log_prompts)


def end_process(status: int) -> NoReturn:
    """Runs the exit handlers, for 5 seconds at most, and ends the process.

    A forward that hangs does not keep it; and Python's own teardown, which takes seconds with torch, is left out.
    """
    timer = threading.Timer(EXIT_SECONDS, os._exit, [status])
    timer.daemon = True
    timer.start()
    atexit._run_exitfuncs()
    sys.stdout.flush()
    os._exit(status)
