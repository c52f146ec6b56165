"""The `Executor` protocol: how the engine reaches its members."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from gac_core.model.chunk import Chunk, ChunkResult
from gac_core.model.member import Member

Calls = Mapping[str, Sequence[Chunk]]
"""The chunks of one step by member id."""


class Executor(Protocol):
    """Runs chunks on members, which are addressed by their ``member_id``."""

    def add_member(self, member: Member) -> None:
        """Adds a member. One that is added several times stays until it is removed as often."""
        ...

    def remove_member(self, member_id: str) -> None:
        """Removes a member, which stays open; its requests must be released before.

        Raises:
            KeyError: There is no such member.
        """
        ...

    def forward(self, calls: Calls, prefill_seconds: float | None = None) -> dict[str, list[ChunkResult]]:
        """Runs the chunks of each member.

        Args:
            calls: The chunks by member id, at most one per request and member.
            prefill_seconds: Seconds that each member may spend on long chunks, because other requests wait for this
                call; None (default): no limit.

        Returns:
            The results by member id, in the order of the chunks.
        """
        ...

    def release(self, request_id: str, clear: bool = False) -> None:
        """Frees the KV cache slots of a request on all members.

        Args:
            request_id: The request.
            clear: Erase the slots instead of keeping them for prefix caching.
        """
        ...

    def running(self) -> list[tuple[str, float]]:
        """Returns the id of each member whose forward is running and the seconds since it began.

        May be called from any thread.
        """
        ...

    def close(self) -> None:
        """Stops the executor; no other method may be called afterwards."""
        ...
