"""`MemberSupervisor`: keeps one actor of a member running."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from gac_core.config import EnsembleConfig
from gac_core.errors import GaCError, MemberError, MemberLostError, ModelLoadError, shorten
from gac_core.executor.ray import cluster
from gac_core.executor.ray.actor import LoadFailure, MemberFacts, Threads
from gac_core.executor.ray.placement import Placement
from gac_core.executor.ray.process import MemberProcess

logger = logging.getLogger(__name__)

START_SECONDS = 1800.0
"""How long a member may take to be loaded, once it is placed."""

FIRST_PAUSE = 1.0
LONGEST_PAUSE = 60.0
"""Seconds between two attempts to start a member again, which double from the first to the longest."""


OnLost = Callable[[MemberProcess, MemberError], None]
OnRestarted = Callable[[MemberProcess, float], None]


@dataclass(frozen=True)
class _Started:
    """A process that has loaded its member, or why there is none."""

    process: MemberProcess | None
    error: GaCError | None = None


class MemberSupervisor:
    """Starts a member in an actor, and starts it again whenever its process ends. Thread-safe.

    Args:
        name: The member's name.
        config: The configuration that the actor loads, with this member alone.
        threads: The threads that it uses on a CPU.
        placement: Where it runs.
        index: Its bundle.
    """

    def __init__(self, name: str, config: EnsembleConfig, threads: Threads, placement: Placement, index: int) -> None:
        self.name = name
        self.placement = placement
        self._config = config
        self._threads = threads
        self._index = index
        self._changed = threading.Condition()
        self._closed = threading.Event()
        self._process: MemberProcess | None = None
        # The one that is being loaded.
        self._starting: MemberProcess | None = None
        self._error: GaCError | None = None
        self._facts: MemberFacts | None = None
        self._generation = 0
        self._subscribers: dict[object, tuple[OnLost, OnRestarted]] = {}
        placement.use()
        self._thread = threading.Thread(target=self._run, name=f"gac-ray-{name}", daemon=True)
        self._thread.start()

    @property
    def process(self) -> MemberProcess:
        """The latest process that has loaded the member; it may be gone."""
        assert self._process is not None, "wait_started returned"
        return self._process

    @property
    def restart_error(self) -> GaCError | None:
        """Why the latest attempt to start the member again failed; None if it did not, or none was made."""
        return self._error

    def subscribe(self, on_lost: OnLost, on_restarted: OnRestarted) -> Callable[[], None]:
        """Calls functions in the supervisor's thread; returns what ends that.

        Args:
            on_lost: Called with a process that has ended, and why.
            on_restarted: Called with the process in its place, once it has loaded the member, and the seconds between.
        """
        key = object()
        self._subscribers[key] = (on_lost, on_restarted)
        return lambda: self._subscribers.pop(key, None) and None

    def wait_started(self) -> MemberFacts:
        """Waits until the member is loaded, and returns its facts.

        Raises:
            ModelLoadError: It cannot be loaded.
            ConfigError: A setting does not fit it.
        """
        with self._changed:
            self._changed.wait_for(lambda: self._facts is not None or self._error is not None)
            if self._facts is None:
                assert self._error is not None, "an attempt has one of them"
                raise self._error
            return self._facts

    def close(self) -> None:
        """Ends the member's process for good; idempotent."""
        if self._closed.is_set():
            return
        self._closed.set()
        self._end_processes()
        self._thread.join(5.0)
        self.placement.release()

    def _end_processes(self) -> None:
        for process in (self._process, self._starting):
            if process is not None:
                process.end(MemberLostError(self.name, "its ensemble was closed"))

    def _run(self) -> None:
        pause, since = FIRST_PAUSE, 0.0
        while not (self._closed.is_set() or cluster.ended()):
            started = self._start()
            restarted = self._facts is not None
            with self._changed:
                self._error = started.error
                if started.process is not None:
                    self._process, self._facts = started.process, started.process.facts
                self._changed.notify_all()
            if self._closed.is_set():
                # `close` may not have seen the process.
                self._end_processes()
            elif started.process is not None:
                if restarted:
                    self._report_restart(started.process, time.monotonic() - since)
                self._wait_gone(started.process)
                pause, since = FIRST_PAUSE, time.monotonic()
            elif not restarted:
                # It never ran: who loads the ensemble gets the error.
                return
            elif not (self._closed.is_set() or cluster.ended()):
                logger.warning("member %r could not be started again: %s", self.name, started.error)
                self._closed.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _wait_gone(self, process: MemberProcess) -> None:
        while not process.wait_gone(1.0) and process.lost is None:
            continue
        error = process.lost
        if self._closed.is_set() or cluster.ended() or error is None:
            return
        extra = {"event": "member_failed", "member": self.name, "request_id": None}
        logger.error("member %r is lost and is being started again: %s", self.name, error.reason, extra=extra)
        for on_lost, _ in list(self._subscribers.values()):
            on_lost(process, error)

    def _report_restart(self, process: MemberProcess, seconds: float) -> None:
        extra = {"event": "member_recovered", "member": self.name, "request_id": None, "seconds": seconds}
        message = "member %r works again, in %s, %.1f s after it was lost"
        logger.info(message, self.name, process.place, seconds, extra=extra)
        for _, on_restarted in list(self._subscribers.values()):
            on_restarted(process, seconds)

    def _start(self) -> _Started:
        """Starts one process and waits until it has loaded the member."""
        if not cluster.usable():
            return _Started(None, ModelLoadError(self.name, "Ray was shut down in this process"))
        options = self.placement.options(self._index)
        try:
            process = MemberProcess(self.name, self._config, self._threads, options, self._generation)
        except Exception as error:
            return _Started(None, ModelLoadError(self.name, f"no actor can be created: {shorten(str(error))}"))
        self._generation += 1
        self._starting = process
        failure: GaCError | None
        try:
            failure = self._wait_loaded(process)
        except MemberError as lost:
            failure = ModelLoadError(self.name, f"its process ended while it was loaded: {lost}")
        except Exception as error:
            failure = ModelLoadError(
                self.name,
                f"its actor's report cannot be read ({type(error).__name__}: {shorten(str(error))}); install the same "
                "version of this library on all nodes",
            )
        finally:
            self._starting = None
        if failure is not None:
            process.end(MemberLostError(self.name, "it was not loaded"))
            return _Started(None, failure)
        return _Started(process)

    def _wait_loaded(self, process: MemberProcess) -> GaCError | None:
        until = time.monotonic() + START_SECONDS
        while (result := process.wait_loaded(1.0)) is None:
            if self._closed.is_set():
                return ModelLoadError(self.name, "its ensemble was closed")
            if time.monotonic() > until:
                return ModelLoadError(self.name, f"its actor was not ready after {START_SECONDS:.0f} s")
        if isinstance(result, LoadFailure):
            return _load_error(self.name, result)
        for level, text in result.warnings:
            logger.log(level, "on node %s: %s", result.node, text)
        return self._changed_facts(result)

    def _changed_facts(self, facts: MemberFacts) -> ModelLoadError | None:
        """The error of a member that is not the one it was before, because another node has other files."""
        before = self._facts
        if before is None:
            return None
        for what in ("rows", "size", "context", "dtype", "end_ids", "fingerprint"):
            old, new = getattr(before, what), getattr(facts, what)
            if old != new:
                return ModelLoadError(
                    self.name,
                    f"its files on node {facts.node} differ from those on node {before.node}, where it ran before "
                    f"({what} {new!r} instead of {old!r}); copy the same files to all nodes",
                )
        return None


def _load_error(name: str, failure: LoadFailure) -> GaCError:
    """The error of a member that could not be loaded, which names the node as well."""
    error = failure.error.rebuild()
    if isinstance(error, GaCError) and not isinstance(error, ModelLoadError):
        return error
    loaded = ModelLoadError(name, f"on node {failure.node}: {error}")
    loaded.__cause__ = error
    return loaded
