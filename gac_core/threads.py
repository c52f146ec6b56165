"""`DaemonPool`: a thread pool that does not delay the exit of Python."""

from __future__ import annotations

import atexit
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_Job = tuple[Callable[[], Any], "Future[Any]"]
_pools: weakref.WeakSet[DaemonPool] = weakref.WeakSet()
# `threading.stack_size` is global: it applies to every thread started afterwards.
_starting = threading.Lock()


class DaemonPool:
    """A pool of daemon threads, started on demand.

    Unlike `ThreadPoolExecutor`, whose threads are joined at exit, it does not block the exit if a job never returns.

    Args:
        name: Prefix of the threads' names.
        threads: Maximum number of threads. Default 1.
        idle: Seconds after which a thread without a job ends. Default None: never before `close`.
        stack_size: Stack per thread, in bytes. Default 0: the system's default.
        grace: Maximum seconds that the exit of Python waits for running jobs. Default 0.
    """

    def __init__(
        self, name: str, threads: int = 1, idle: float | None = None, stack_size: int = 0, grace: float = 0.0
    ) -> None:
        self._name = name
        self._most = threads
        self._idle = idle
        self._stack_size = stack_size
        self.grace = grace
        self._closed = False
        self._reset()
        _pools.add(self)

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._threads: set[threading.Thread] = set()
        # Number of queued and running jobs.
        self._open = 0

    def _follow_fork(self) -> None:
        """Resets the pool in a forked process, where its threads and the owner of its lock do not exist."""
        if self._process != os.getpid():
            self._reset()

    def submit(self, job: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Queues a job.

        Raises:
            RuntimeError: The pool is closed, or Python is exiting and cannot start threads.
        """
        self._follow_fork()
        future: Future[R] = Future()
        with self._lock:
            if self._closed:
                raise RuntimeError("the pool is closed")
            if self._open >= len(self._threads) < self._most:
                self._start()
            self._open += 1
            self._jobs.put((lambda: job(*args, **kwargs), future))
        return future

    def close(self, wait: float = 0.0) -> None:
        """Cancels queued jobs and ends the threads; running jobs are not interrupted.

        Args:
            wait: Maximum seconds to wait for running jobs. Default 0.
        """
        self._follow_fork()
        with self._lock:
            self._closed = True
            with suppress(queue.Empty):
                while True:
                    queued = self._jobs.get_nowait()
                    if queued is not None:
                        queued[1].cancel()
                        self._open -= 1
            threads = list(self._threads)
            for _ in threads:
                self._jobs.put(None)
        until = time.monotonic() + wait
        for thread in threads if wait else ():
            thread.join(max(0.0, until - time.monotonic()))

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name=f"{self._name}-{len(self._threads)}", daemon=True)
        with _starting:
            before = threading.stack_size(self._stack_size) if self._stack_size else None
            try:
                thread.start()
            finally:
                if before is not None:
                    threading.stack_size(before)
        self._threads.add(thread)

    def _run(self) -> None:
        queued = self._next()
        while queued is not None:
            job, future = queued
            if future.set_running_or_notify_cancel():
                try:
                    result = job()
                except BaseException as error:
                    self._finished()
                    future.set_exception(error)
                else:
                    self._finished()
                    future.set_result(result)
            else:
                self._finished()
            # Drop all references to the job before blocking on the queue.
            queued = job = future = result = None  # type: ignore[assignment]
            queued = self._next()

    def _finished(self) -> None:
        with self._lock:
            self._open -= 1

    def _next(self) -> _Job | None:
        try:
            if self._idle != 0:
                return self._jobs.get(timeout=self._idle)
        except queue.Empty:
            pass
        with self._lock:
            # A job queued since the timeout counts on this thread; `submit` started no other.
            with suppress(queue.Empty):
                return self._jobs.get_nowait()
            self._threads.discard(threading.current_thread())
        return None


def in_parallel(jobs: Sequence[Callable[[], R]]) -> list[R]:
    """Runs jobs in a thread each and returns their results, in the same order.

    Raises:
        Exception: What the first job that failed raised, once all have ended.
    """
    with ThreadPoolExecutor(max(1, len(jobs)), thread_name_prefix="gac-load") as pool:
        futures = [pool.submit(job) for job in jobs]
    return [future.result() for future in futures]


def _close_all() -> None:
    """Closes all pools at exit, waiting up to their ``grace``.

    A thread that returns from native code after the interpreter has shut down may abort the process.
    """
    for pool in list(_pools):
        if pool._process == os.getpid():
            pool.close(pool.grace)


atexit.register(_close_all)
