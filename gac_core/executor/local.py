"""`LocalExecutor`: runs members in this process."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from gac_core.executor.base import ExecutorMember
from gac_core.executor.evaluator import Evaluator
from gac_core.executor.messages import Answer, Ask, Failure, Fetch
from gac_core.model.member import Member
from gac_core.threads import DaemonPool

logger = logging.getLogger(__name__)

Q = TypeVar("Q")
R = TypeVar("R")


@dataclass
class _Entry:
    """A member and how often it was added."""

    evaluator: Evaluator
    references: int = 1

    @property
    def member(self) -> Member:
        return self.evaluator.member


@dataclass(frozen=True)
class _Release:
    """A release that one member has not carried out yet."""

    evaluator: Evaluator
    request_id: str
    clear: bool


class LocalExecutor:
    """Runs members in this process: those on one device one after another, those on different devices in parallel.

    Each device gets a thread of its own as soon as there are two devices. All methods but `running` are called from one
    thread at a time.

    Args:
        members: Members to begin with. Default none.
        compact: Answer with the most probable tokens where those suffice, as executors do whose members are in other
            processes. Default False.
    """

    def __init__(self, members: Sequence[Member] = (), compact: bool = False) -> None:
        self._compact = compact
        self._entries: dict[str, _Entry] = {}
        self._threads: dict[torch.device, DaemonPool] = {}
        # When the forward of each member began that is running now, by member id.
        self._began: dict[str, float] = {}
        self._releases: list[_Release] = []
        for member in members:
            self.add_member(member)

    def add_member(self, member: ExecutorMember) -> None:
        """Adds a member of this process. One that is added several times stays until it is removed as often."""
        assert isinstance(member, Member), "its model is in this process"
        entry = self._entries.get(member.member_id)
        if entry is not None:
            entry.references += 1
            return
        self._entries[member.member_id] = _Entry(Evaluator(member, self._compact))
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

    def forward(
        self, asks: Mapping[str, Sequence[Ask]], prefill_seconds: float | None = None
    ) -> dict[str, list[Answer]]:
        """Computes distributions; see `Executor.forward`.

        Raises:
            KeyError: There is no such member.
        """
        self._retry_releases()
        return self._on_devices(asks, lambda evaluator, own: self._forward(evaluator, own, prefill_seconds))

    def _forward(self, evaluator: Evaluator, asks: Sequence[Ask], prefill_seconds: float | None) -> list[Answer]:
        member = evaluator.member
        self._began[member.member_id] = time.monotonic()
        try:
            return evaluator.forward(asks, prefill_seconds)
        except BaseException as error:
            # Errors of the model are results already; this one is a defect or a closed member. Other members go on.
            logger.exception("member %r failed", member.name)
            return [Answer(Failure(error)) for _ in asks]
        finally:
            del self._began[member.member_id]

    def fetch(self, wanted: Mapping[str, Sequence[Fetch]]) -> dict[str, list[Tensor | Failure]]:
        """Returns probabilities that answers left out; see `Executor.fetch`.

        Raises:
            KeyError: There is no such member.
        """
        return self._on_devices(wanted, lambda evaluator, own: evaluator.fetch(own))

    def _on_devices(
        self, calls: Mapping[str, Sequence[Q]], run: Callable[[Evaluator, Sequence[Q]], list[R]]
    ) -> dict[str, list[R]]:
        """Runs something on members, at the same time on those of different devices; returns its results."""
        entries = {member_id: self._entries[member_id] for member_id in calls}
        if not self._threads:
            return {member_id: run(entry.evaluator, calls[member_id]) for member_id, entry in entries.items()}
        futures: dict[str, Future[list[R]]] = {}
        for member_id, entry in entries.items():
            futures[member_id] = self._threads[entry.member.device].submit(run, entry.evaluator, calls[member_id])
        return {member_id: future.result() for member_id, future in futures.items()}

    def refresh(self) -> None:
        """Does nothing: members of this process are not restarted."""

    def generation(self, member_id: str) -> int:
        """Returns 0: members of this process keep their KV caches."""
        return 0

    def alive(self, member_id: str) -> bool:
        """Returns whether a member can compute now."""
        return True

    def running(self) -> list[tuple[str, float]]:
        """Returns the id of each member whose forward is running and the seconds since it began.

        May be called from any thread.
        """
        now = time.monotonic()
        return [(member_id, now - began) for member_id, began in self._began.copy().items()]

    def release(self, request_id: str, clear: bool = False, member_id: str | None = None) -> None:
        """Frees what members hold of a request; see `Executor.release`.

        Never raises: if a member lacks the memory to do so now, the release is repeated at the next call.
        """
        self._releases += [
            _Release(entry.evaluator, request_id, clear)
            for key, entry in self._entries.items()
            if member_id in (None, key)
        ]
        self._retry_releases()

    def _retry_releases(self) -> None:
        releases, self._releases = self._releases, []
        for release in releases:
            try:
                release.evaluator.release(release.request_id, release.clear)
            except BaseException:
                name = release.evaluator.member.name
                logger.exception("member %r could not free a request's slot; it is tried again", name)
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
