"""Where members run: the `Executor` seam, and the one that runs them in this process.

Knows members and chunks; knows nothing of requests' wishes, of the union or of sampling.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Protocol

from gac_core.member import Chunk, ChunkResult, Member

Calls = Mapping[int, Sequence[Chunk]]


class Executor(Protocol):
    """Carries chunks to members, by the member's index."""

    def forward(self, calls: Calls) -> dict[int, list[ChunkResult]]:
        """Runs every member's chunks and returns the results in the order of the chunks."""
        ...

    def release(self, request_id: str, clear: bool = False) -> None:
        """Frees what members hold for a request; ``clear`` also overwrites it."""
        ...

    def close(self) -> None:
        """Stops; nothing may be called afterwards."""
        ...


class LocalExecutor:
    """Runs members in this process: those on one device one after another, different devices at the same time.

    Args:
        members: The members, in the ensemble's order.
    """

    def __init__(self, members: Sequence[Member]) -> None:
        self._members = list(members)
        devices = {member.device for member in members}
        self._threads = (
            {device: ThreadPoolExecutor(1, thread_name_prefix=f"gac-{device}") for device in devices}
            if len(devices) > 1
            else {}
        )

    def forward(self, calls: Calls) -> dict[int, list[ChunkResult]]:
        """Runs every member's chunks and returns the results in the order of the chunks."""
        if not self._threads:
            return {index: self._members[index].forward(chunks) for index, chunks in calls.items()}
        futures = {
            index: self._threads[self._members[index].device].submit(self._members[index].forward, chunks)
            for index, chunks in calls.items()
        }
        return {index: future.result() for index, future in futures.items()}

    def release(self, request_id: str, clear: bool = False) -> None:
        """Frees what members hold for a request; ``clear`` also overwrites it."""
        for member in self._members:
            member.release(request_id, clear)

    def close(self) -> None:
        """Stops the device threads."""
        for thread in self._threads.values():
            thread.shutdown(wait=True)
