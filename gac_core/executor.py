"""Where members run: the `Executor` seam, and the one that runs them in this process.

Knows members and chunks; knows nothing of requests' wishes, of the union or of sampling.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Protocol

import torch

from gac_core.member import Chunk, ChunkResult, Member

logger = logging.getLogger(__name__)

Calls = Mapping[int, Sequence[Chunk]]


class Executor(Protocol):
    """Carries chunks to members, by the member's index."""

    def forward(self, calls: Calls) -> dict[int, list[ChunkResult]]:
        """Runs every member's chunks and returns the results in the order of the chunks."""
        ...

    def release(self, request_id: str, clear: bool = False) -> None:
        """Frees what members hold for a request; ``clear`` also overwrites it."""
        ...

    def running(self) -> list[tuple[str, float]]:
        """Returns the members whose forward is running, with seconds since it began; may be called from any thread."""
        ...

    def close(self) -> None:
        """Stops; nothing may be called afterwards."""
        ...


class _DeviceThread:
    """A thread for the members of one device.

    Not a `ThreadPoolExecutor`: Python joins the threads of those when it exits, also one whose forward never returns.
    """

    def __init__(self, device: torch.device) -> None:
        self._jobs: queue.SimpleQueue[tuple[Callable[[], list[ChunkResult]], Future[list[ChunkResult]]] | None]
        self._jobs = queue.SimpleQueue()
        threading.Thread(target=self._run, name=f"gac-{device}", daemon=True).start()

    def submit(self, job: Callable[[], list[ChunkResult]]) -> Future[list[ChunkResult]]:
        """Queues a job."""
        future: Future[list[ChunkResult]] = Future()
        self._jobs.put((job, future))
        return future

    def close(self) -> None:
        """Ends the thread after the jobs that are queued."""
        self._jobs.put(None)

    def _run(self) -> None:
        while (queued := self._jobs.get()) is not None:
            job, future = queued
            try:
                future.set_result(job())
            except BaseException as error:
                future.set_exception(error)


class LocalExecutor:
    """Runs members in this process: those on one device one after another, different devices at the same time.

    Args:
        members: The members, in the ensemble's order.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)
        devices = {member.device for member in members}
        self._threads = {device: _DeviceThread(device) for device in devices} if len(devices) > 1 else {}
        self._began: dict[int, float] = {}
        self._owed: list[tuple[str, bool]] = []

    def forward(self, calls: Calls) -> dict[int, list[ChunkResult]]:
        """Runs every member's chunks and returns the results in the order of the chunks."""
        self._pay()
        futures: dict[int, Future[list[ChunkResult]]] = {}
        for index, chunks in calls.items() if self._threads else ():
            thread = self._threads[self._members[index].device]
            futures[index] = thread.submit(partial(self._forward, index, chunks))
        return {
            index: futures[index].result() if index in futures else self._forward(index, chunks)
            for index, chunks in calls.items()
        }

    def _forward(self, index: int, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        self._began[index] = time.monotonic()
        try:
            return self._members[index].forward(chunks)
        finally:
            del self._began[index]

    def running(self) -> list[tuple[str, float]]:
        """Returns the members whose forward is running, with seconds since it began; may be called from any thread."""
        now = time.monotonic()
        return [(self._members[index].name, now - began) for index, began in self._began.copy().items()]

    def release(self, request_id: str, clear: bool = False) -> None:
        """Frees what members hold for a request; ``clear`` also overwrites it.

        Never raises: where a member cannot do so now, for want of memory, it is tried again at the next call.
        """
        self._owed.append((request_id, clear))
        self._pay()

    def _pay(self) -> None:
        owed, self._owed = self._owed, []
        for request_id, clear in owed:
            for member in self._members:
                try:
                    # A member that holds nothing of a request does nothing.
                    member.release(request_id, clear)
                except Exception:
                    logger.exception("a member could not give up what it holds of a request; it is tried again")
                    self._owed.append((request_id, clear))
                    break

    def close(self) -> None:
        """Stops the device threads."""
        for thread in self._threads.values():
            thread.close()
