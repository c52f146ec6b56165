"""`LocalExecutor`: runs members in this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass

import torch

from gac_core.executor.base import Calls
from gac_core.model.chunk import Chunk, ChunkResult
from gac_core.model.member import Member
from gac_core.threads import DaemonPool

logger = logging.getLogger(__name__)


@dataclass
class _Entry:
    """A member and how often it was added."""

    member: Member
    references: int = 1


@dataclass(frozen=True)
class _Release:
    """A release that one member has not carried out yet."""

    member: Member
    request_id: str
    clear: bool


class LocalExecutor:
    """Runs members in this process: those on one device one after another, those on different devices in parallel.

    Each device gets a thread of its own as soon as there are two devices. All methods but `running` are called from one
    thread at a time.

    Args:
        members: Members to begin with. Default none.
    """

    def __init__(self, members: Sequence[Member] = ()) -> None:
        self._entries: dict[str, _Entry] = {}
        self._threads: dict[torch.device, DaemonPool] = {}
        # When the forward of each member began that is running now, by member id.
        self._began: dict[str, float] = {}
        self._releases: list[_Release] = []
        for member in members:
            self.add_member(member)

    def add_member(self, member: Member) -> None:
        """Adds a member. One that is added several times stays until it is removed as often."""
        entry = self._entries.get(member.member_id)
        if entry is not None:
            entry.references += 1
            return
        self._entries[member.member_id] = _Entry(member)
        self._update_threads()

    def remove_member(self, member_id: str) -> None:
        """Removes a member, which stays open; its requests must be released before.

        Raises:
            KeyError: There is no such member.
        """
        entry = self._entries[member_id]
        entry.references -= 1
        if not entry.references:
            del self._entries[member_id]
            self._update_threads()

    def forward(self, calls: Calls, prefill_seconds: float | None = None) -> dict[str, list[ChunkResult]]:
        """Runs the chunks of each member; see `Executor.forward`.

        Never raises for what a member raises: each of its chunks has that error as its result.

        Raises:
            KeyError: There is no such member.
        """
        self._retry_releases()
        members = {member_id: self._entries[member_id].member for member_id in calls}
        futures: dict[str, Future[list[ChunkResult]]] = {}
        if self._threads:
            for member_id, member in members.items():
                thread = self._threads[member.device]
                futures[member_id] = thread.submit(self._forward, member, calls[member_id], prefill_seconds)
            return {member_id: future.result() for member_id, future in futures.items()}
        return {
            member_id: self._forward(member, calls[member_id], prefill_seconds) for member_id, member in members.items()
        }

    def _forward(self, member: Member, chunks: Sequence[Chunk], prefill_seconds: float | None) -> list[ChunkResult]:
        self._began[member.member_id] = time.monotonic()
        try:
            return member.forward(chunks, prefill_seconds)
        except BaseException as error:
            # Errors of the model are results already; this one is a defect or a closed member. Other members go on.
            logger.exception("member %r failed", member.name)
            return [ChunkResult(error) for _ in chunks]
        finally:
            del self._began[member.member_id]

    def running(self) -> list[tuple[str, float]]:
        """Returns the id of each member whose forward is running and the seconds since it began.

        May be called from any thread.
        """
        now = time.monotonic()
        return [(member_id, now - began) for member_id, began in self._began.copy().items()]

    def release(self, request_id: str, clear: bool = False) -> None:
        """Frees the KV cache slots of a request on all members; see `Executor.release`.

        Never raises: if a member lacks the memory to do so now, the release is repeated at the next call.
        """
        self._releases += [_Release(entry.member, request_id, clear) for entry in self._entries.values()]
        self._retry_releases()

    def _retry_releases(self) -> None:
        releases, self._releases = self._releases, []
        for release in releases:
            try:
                release.member.release(release.request_id, release.clear)
            except BaseException:
                logger.exception("member %r could not free a request's slot; it is tried again", release.member.name)
                self._releases.append(release)

    def _update_threads(self) -> None:
        """Starts or stops device threads: one per device where members are on several."""
        devices = {entry.member.device for entry in self._entries.values()}
        wanted = devices if len(devices) > 1 else set()
        for device in wanted - self._threads.keys():
            self._threads[device] = DaemonPool(f"gac-{device}")
        for device in self._threads.keys() - wanted:
            self._threads.pop(device).close()

    def close(self) -> None:
        """Stops the device threads; members stay open."""
        for thread in self._threads.values():
            thread.close()
