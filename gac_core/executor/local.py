"""`LocalExecutor`: runs members in this process."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from gac_core.events import Listener, ignore
from gac_core.executor.base import ExecutorMember
from gac_core.executor.device_thread import DeviceThread, TimedCall, run_calls
from gac_core.executor.local_member import LocalMember, MemberCall
from gac_core.executor.messages import Answer, Ask, Failure, Fetch
from gac_core.health import MemberHealth
from gac_core.model.member import Member

R = TypeVar("R")


class LocalExecutor:
    """Runs members in this process: those on one device one after another, those on different devices in parallel.

    Each device has a thread. A member whose call has not returned within `Ask.timeout` is hung until it returns: it is
    not alive, and what it returns is discarded. Members that share its model wait for it, and hang as well.

    Args:
        members: Members to begin with. Default none.
        compact: Answer with the most probable tokens where those suffice, as executors do whose members are in other
            processes. Default False.
        listener: Receives events, in the engine's thread or in that of a device. Default: does nothing.
    """

    def __init__(self, members: Sequence[Member] = (), compact: bool = False, listener: Listener = ignore) -> None:
        self._compact = compact
        self._members: dict[str, LocalMember] = {}
        self._threads: dict[torch.device, DeviceThread] = {}
        self._listener = listener
        for member in members:
            self.add_member(member)

    def add_member(self, member: ExecutorMember) -> None:
        """Adds a member of this process. One that is added several times stays until it is removed as often."""
        assert isinstance(member, Member), "its model is in this process"
        known = self._members.get(member.member_id)
        if known is not None:
            known.references += 1
            return
        self._members[member.member_id] = LocalMember(member, self._compact, self._listener)
        if member.device not in self._threads:
            self._threads[member.device] = DeviceThread(f"gac-{member.device}")

    def remove_member(self, member_id: str) -> None:
        """Removes a member, which stays open; its requests must be released before.

        Raises:
            KeyError: There is no such member.
        """
        known = self._members[member_id]
        known.references -= 1
        if not known.references:
            del self._members[member_id]
            for device in self._threads.keys() - {other.member.device for other in self._members.values()}:
                self._threads.pop(device).close()

    def forward(
        self, asks: Mapping[str, Sequence[Ask]], prefill_seconds: float | None = None
    ) -> dict[str, list[Answer]]:
        """Computes distributions; see `Executor.forward`.

        Raises:
            KeyError: There is no such member.
        """
        return _run({key: self._forward(self._members[key], own, prefill_seconds) for key, own in asks.items()})

    def _forward(
        self, member: LocalMember, asks: Sequence[Ask], prefill_seconds: float | None
    ) -> tuple[DeviceThread, MemberCall[Answer]]:
        member.limit = min((ask.timeout for ask in asks if ask.timeout is not None), default=math.inf)
        call = MemberCall(
            member, lambda: member.forward(asks, prefill_seconds), lambda error: [Answer(Failure(error)) for _ in asks]
        )
        return self._threads[member.member.device], call

    def fetch(self, wanted: Mapping[str, Sequence[Fetch]]) -> dict[str, list[Tensor | Failure]]:
        """Returns probabilities that answers left out; see `Executor.fetch`.

        Raises:
            KeyError: There is no such member.
        """
        return _run({key: self._fetch(self._members[key], own) for key, own in wanted.items()})

    def _fetch(self, member: LocalMember, wanted: Sequence[Fetch]) -> tuple[DeviceThread, MemberCall[Tensor | Failure]]:
        call: MemberCall[Tensor | Failure] = MemberCall(
            member,
            lambda: member.evaluator.fetch(wanted),
            lambda error: [Failure(error, "fetching probabilities") for _ in wanted],
        )
        return self._threads[member.member.device], call

    def refresh(self) -> None:
        """Releases what could not be released before; members of this process are not restarted."""
        for member in self._members.values():
            member.retry_releases()

    def generation(self, member_id: str) -> int:
        """Returns 0: members of this process keep their KV caches."""
        return 0

    def alive(self, member_id: str) -> bool:
        """Returns whether a member can compute now: whether no call of it hangs."""
        return self._members[member_id].error is None

    def health(self, member_id: str) -> MemberHealth:
        """Returns the state of a member; from any thread, without waiting.

        Raises:
            KeyError: There is no such member.
        """
        return self._members[member_id].health()

    def running(self) -> list[tuple[str, float]]:
        """Returns the id of each member whose forward is running and the seconds since it began.

        Without those that are hung, for which the engine does not wait. May be called from any thread.
        """
        now = time.monotonic()
        began = [(key, member.began) for key, member in list(self._members.items()) if member.error is None]
        return [(key, now - each) for key, each in began if each is not None]

    def release(self, request_id: str, clear: bool = False, member_id: str | None = None) -> None:
        """Frees what members hold of a request; see `Executor.release`.

        Never raises or waits: while a member is hung, lacks the memory to do so, or shares its model with another
        engine that uses it, the release is repeated later, and carried out before the member's next forward.
        """
        for key, member in self._members.items():
            if member_id in (None, key):
                member.release(request_id, clear)

    def close(self) -> None:
        """Stops the devices' threads; members stay open."""
        for thread in self._threads.values():
            thread.close()


def _run(calls: Mapping[str, tuple[DeviceThread, MemberCall[R]]]) -> dict[str, list[R]]:
    """Makes calls of members in the threads of their devices, those of hung members excepted; returns their results."""
    by_thread: dict[DeviceThread, list[TimedCall]] = {}
    for thread, call in calls.values():
        if call.possible:
            by_thread.setdefault(thread, []).append(call)
    run_calls(by_thread)
    return {key: call.results for key, (_, call) in calls.items()}
