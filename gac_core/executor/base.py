"""The `Executor` interface: runs members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from gac_core.model.chunk import Chunk, ChunkResult

Calls = Mapping[str, Sequence[Chunk]]


class Executor(Protocol):
    """Carries chunks to members, by the member's index."""

    def forward(self, calls: Calls, crowded: bool = False) -> dict[str, list[ChunkResult]]:
        """Runs every member's chunks and returns the results in the order of the chunks.

        ``crowded``: other requests wait for it, so that the time of a part of a long chunk is bounded.
        """
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
