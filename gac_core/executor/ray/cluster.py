"""The connection of this process with Ray, shared by all ensembles on it."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import ray

from gac_core.errors import ConfigError, EngineClosedError, quote, shorten
from gac_core.executor.ray.tokens import starts_here

logger = logging.getLogger(__name__)

OBJECT_STORE_BYTES = 2**28
"""Shared memory of a Ray that is started here; messages of a step are far smaller."""

EXIT_SECONDS = 5.0
"""How long the exit of Python waits for Ray to be shut down by another thread."""

SIGTERM_SECONDS = 3.0
"""Seconds after a SIGTERM at which Ray's handler aborts a process that has not exited."""

REACH_SECONDS = 10.0
"""How long to wait for an answer from an address."""


@dataclass(frozen=True)
class Node:
    """A node of the cluster.

    Attributes:
        name: Its address.
        resources: What it has in all, such as ``{"CPU": 8.0, "GPU": 1.0}``.
    """

    name: str
    resources: Mapping[str, float]


class Cluster:
    """A connection with Ray; the last one that is closed ends what the first one began.

    Where Ray was initialised before, that connection is used and left as it is.

    Args:
        address: As `EnsembleConfig.ray_address`.

    Attributes:
        started: Whether this connection started a Ray of its own, which has one node and never grows.

    Raises:
        ConfigError: Ray cannot be reached.
        EngineClosedError: Ray was initialised before this process was forked.
    """

    def __init__(self, address: str | None) -> None:
        self._closed = False
        self.started = _connections.open(address)

    def close(self) -> None:
        """Gives the connection back; idempotent."""
        if not self._closed:
            self._closed = True
            _connections.close()

    def nodes(self) -> list[Node]:
        """Returns the nodes that are alive."""
        nodes = ray.nodes()  # type: ignore[no-untyped-call]
        return [Node(node["NodeManagerAddress"], node["Resources"]) for node in nodes if node["Alive"]]

    @property
    def session(self) -> str:
        """Identifies the connection: actors of an earlier one are gone."""
        context = ray.get_runtime_context()
        return f"{context.gcs_address} {context.get_job_id()}"

    def free(self) -> Mapping[str, float]:
        """Returns what is not reserved, on all nodes together."""
        free: Mapping[str, float] = ray.available_resources()  # type: ignore[no-untyped-call]
        return free


class _Connections:
    """Counts the connections of this process."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._count = 0
        # Whether the first connection initialised Ray, and whether it started one.
        self._initialised = self._started = False
        # The address that the first connection used.
        self._address: str | None = None
        self.ended = False

    def end(self) -> None:
        """Makes no calls any more, since Python exits, and waits for those that close connections."""
        self.ended = True
        if self._lock.acquire(timeout=EXIT_SECONDS):
            self._lock.release()

    def open(self, address: str | None) -> bool:
        with self._lock:
            if ray.is_initialized():
                _check_process()
                if address != self._address:
                    _check_address(address)
            else:
                self._started = _initialise(address)
                self._initialised, self._address = True, address
            self._count += 1
            return self._started

    def close(self) -> None:
        with self._lock:
            self._count -= 1
            if self._count or not self._initialised:
                return
            self._initialised = self._started = False
            self._address = None
            if usable():
                ray.shutdown()


_connections = _Connections()
# The process in which Ray was initialised, as far as this module knows.
_owner = os.getpid()

if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_connections.reset)


def usable() -> bool:
    """Returns whether calls can be made: Ray may have been shut down by others, and calls would then start one."""
    return not _connections.ended and ray.is_initialized() and _owner == os.getpid()


def end() -> None:
    """Makes no calls any more: Python exits, and Ray shuts itself down next."""
    _cancel_abort()
    _connections.end()


def ended() -> bool:
    """Returns whether `end` was called."""
    return _connections.ended


def _cancel_abort() -> None:
    """Cancels the alarm that Ray's native SIGTERM handler sets.

    It aborts a process that has not exited after `SIGTERM_SECONDS`, and an orderly exit takes longer: Ray waits for the
    processes that it started. An alarm that could be another one is kept.
    """
    if not hasattr(signal, "SIGALRM") or signal.getsignal(signal.SIGALRM) != signal.SIG_DFL:
        return
    left, interval = signal.getitimer(signal.ITIMER_REAL)
    if 0 < left <= SIGTERM_SECONDS and not interval:
        signal.setitimer(signal.ITIMER_REAL, 0)


def _initialise(address: str | None) -> bool:
    """Connects with a cluster or starts one; returns whether it was started."""
    global _owner
    address = address or os.environ.get("RAY_ADDRESS") or None
    if address is not None and address.startswith("ray://"):
        raise ConfigError(
            f"ray_address={quote(address)} is one of Ray's client server, through which each step would take several "
            "round trips; run this process on a machine of the cluster and give the address of its head, host:6379, "
            "or 'auto'"
        )
    start = starts_here(address)
    options: dict[str, Any] = {"address": "local" if start else address}
    if start:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if os.environ.get("RAY_AUTH_MODE") != "token":
            logger.warning(
                "the Ray that is started here requires no token, so that all who reach its ports can run code on this "
                "machine; set RAY_AUTH_MODE=token and RAY_AUTH_TOKEN before Ray is imported"
            )
        options |= {"include_dashboard": False, "object_store_memory": OBJECT_STORE_BYTES}
    reached = False
    try:
        if ":" in options["address"]:
            _reach(options["address"])
            reached = True
        ray.init(log_to_driver=False, logging_level=logging.WARNING, **options)
    except Exception as error:
        reason = f"(ray_address={quote(address)}): {type(error).__name__}: {shorten(' '.join(str(error).split()))}"
        raise ConfigError(_refusal(start, reached and isinstance(error, ConnectionError), reason)) from error
    _owner = os.getpid()
    return start


def _refusal(start: bool, refused: bool, reason: str) -> str:
    """The message for a Ray that cannot be used, with the likeliest remedy first."""
    if refused:
        return (
            "the token of the Ray cluster is missing or wrong, or another program answers at its address; set "
            f"RAY_AUTH_MODE=token and RAY_AUTH_TOKEN to the cluster's token, or check the address {reason}"
        )
    if start:
        return f"Ray cannot be started {reason}; check its logs in /tmp/ray"
    return (
        f"Ray cannot be reached {reason}; start it with 'ray start --head', or check the address, and set "
        "RAY_AUTH_TOKEN to the cluster's token if it has one"
    )


def _reach(address: str) -> None:
    """Raises an `OSError` if nothing listens at an address; Ray itself would try for minutes."""
    host, _, port = address.rpartition(":")
    socket.create_connection((host, int(port) if port.isdecimal() else 0), REACH_SECONDS).close()


def _check_process() -> None:
    if _owner != os.getpid():
        raise EngineClosedError(
            "Ray was initialised before this process was forked and cannot be used here; start processes by 'spawn', "
            "or load the ensemble before anything uses Ray"
        )


def _check_address(address: str | None) -> None:
    """Raises if Ray is connected with another cluster than an ensemble names."""
    used = ray.get_runtime_context().gcs_address
    if address not in (None, "auto", "local") and _resolved(address) != _resolved(used):
        raise ConfigError(
            f"ray_address={quote(address)}, but this process is connected with the Ray at {used}; leave ray_address "
            "out, or call ray.shutdown() before"
        )


def _resolved(address: str) -> tuple[str, str]:
    """The IP address and the port of an address; this machine has the same one under all names."""
    host, _, port = address.rpartition(":")
    try:
        found = socket.gethostbyname(host)
    except OSError:
        return host, port
    here = ray.util.get_node_ip_address()  # type: ignore[no-untyped-call]
    return here if found.startswith("127.") else found, port
