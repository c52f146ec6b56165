"""Where members run: the `Executor` seam, and the one that runs them in this process.

Knows members and chunks; knows nothing of requests' wishes, of the union or of sampling.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future

from gac_core.executor.base import Calls
from gac_core.model.chunk import Chunk, ChunkResult
from gac_core.model.member import Member
from gac_core.threads import DaemonPool

logger = logging.getLogger(__name__)


class LocalExecutor:
    """Runs members in this process: those on one device one after another, different devices at the same time.

    Args:
        members: The members, in the ensemble's order.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = {member.member_id: member for member in members}
        devices = {member.device for member in members}
        self._threads = {device: DaemonPool(f"gac-{device}") for device in devices} if len(devices) > 1 else {}
        self._began: dict[str, float] = {}
        self._owed: list[tuple[str, bool]] = []

    def forward(self, calls: Calls, crowded: bool = False) -> dict[str, list[ChunkResult]]:
        """Runs every member's chunks and returns the results in the order of the chunks.

        ``crowded``: other requests wait for it, so that the time of a part of a long chunk is bounded.
        """
        self._pay()
        futures: dict[str, Future[list[ChunkResult]]] = {}
        for index, chunks in calls.items() if self._threads else ():
            thread = self._threads[self._members[index].device]
            futures[index] = thread.submit(self._forward, index, chunks, crowded)
        return {
            index: futures[index].result() if index in futures else self._forward(index, chunks, crowded)
            for index, chunks in calls.items()
        }

    def _forward(self, index: str, chunks: Sequence[Chunk], crowded: bool) -> list[ChunkResult]:
        self._began[index] = time.monotonic()
        try:
            return self._members[index].forward(chunks, crowded)
        except BaseException as error:
            # Not of a model, which is a chunk's own: the member's books, perhaps. The other members go on.
            logger.exception("member %r failed", self._members[index].name)
            return [ChunkResult(error) for _ in chunks]
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
            for member in self._members.values():
                try:
                    # A member that holds nothing of a request does nothing.
                    member.release(request_id, clear)
                except BaseException:
                    logger.exception("a member could not give up what it holds of a request; it is tried again")
                    self._owed.append((request_id, clear))
                    break

    def close(self) -> None:
        """Stops the device threads."""
        for thread in self._threads.values():
            thread.close()
