"""`RayExecutor`: runs members in actors of Ray."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from torch import Tensor

from gac_core.errors import MemberTimeoutError
from gac_core.executor.base import ExecutorMember
from gac_core.executor.messages import Answer, Ask, Failure, Fetch
from gac_core.executor.ray.process import MemberProcess, Traffic, ready
from gac_core.executor.ray.remote_errors import PortableError
from gac_core.executor.ray.remote_member import RemoteMember
from gac_core.executor.ray.wire import (
    AskMessage,
    FetchMessage,
    FetchReply,
    ForwardMessage,
    ForwardReply,
    decode,
    evaluated_mask,
    tables_of,
)
from gac_core.health import MemberHealth

R = TypeVar("R")


@dataclass
class _Entry:
    """A member, the process that it uses until the next `refresh`, and what is known of its calls."""

    member: RemoteMember
    process: MemberProcess
    references: int = 1
    traffic: Traffic = field(default_factory=Traffic)
    failures: int = 0
    returned: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class _Call:
    """A call whose reply is awaited."""

    entry: _Entry
    reference: Any


class RayExecutor:
    """Runs members in actors: one call per member and step, all members at the same time.

    A member whose actor ends, or does not reply within ``forward_timeout``, fails its asks alone; its actor is started
    again by its `MemberSupervisor` and takes part from the next `refresh` on.

    Args:
        forward_timeout: Seconds after which an actor that has not replied is ended. Default 600.
    """

    def __init__(self, forward_timeout: float = 600.0) -> None:
        self._timeout = forward_timeout
        self._entries: dict[str, _Entry] = {}
        # When the call of each member began whose reply is awaited, by member id.
        self._began: dict[str, float] = {}

    def add_member(self, member: ExecutorMember) -> None:
        """Adds a member of `ray_pool`. One that is added several times stays until it is removed as often."""
        assert isinstance(member, RemoteMember), "its model is in an actor"
        entry = self._entries.get(member.member_id)
        if entry is not None:
            entry.references += 1
            return
        self._entries[member.member_id] = _Entry(member, member.supervisor.process)

    def remove_member(self, member_id: str) -> None:
        """Removes a member, which stays open; its requests must be released before.

        Raises:
            KeyError: There is no such member.
        """
        entry = self._entries[member_id]
        entry.references -= 1
        if not entry.references:
            del self._entries[member_id]

    def forward(
        self, asks: Mapping[str, Sequence[Ask]], prefill_seconds: float | None = None
    ) -> dict[str, list[Answer]]:
        """Computes distributions, those of all members at the same time; see `Executor.forward`.

        Grammar masks are evaluated in this process, before the call of their member.

        Raises:
            KeyError: There is no such member.
        """
        masks = {member_id: [evaluated_mask(ask) for ask in own] for member_id, own in asks.items()}
        sent = {
            member_id: [
                (ask, mask) for ask, mask in zip(own, masks[member_id], strict=True) if not isinstance(mask, Failure)
            ]
            for member_id, own in asks.items()
        }

        def make(member_id: str) -> Callable[[Sequence[Any], Sequence[str]], ForwardMessage]:
            messages = [AskMessage.of(ask, mask) for ask, mask in sent[member_id]]
            return lambda tables, forget: ForwardMessage(messages, prefill_seconds, tables, forget)

        replies = self._calls(
            "forward",
            {member_id: make(member_id) for member_id, pairs in sent.items() if pairs},
            {member_id: tables_of([ask for ask, _ in pairs]) for member_id, pairs in sent.items()},
        )
        answers: dict[str, list[Answer]] = {}
        for member_id, own in masks.items():
            reply = replies.get(member_id)
            if isinstance(reply, ForwardReply):
                self._entries[member_id].member.times.restore(reply.times)
            answers[member_id] = _answers(own, reply)
        return answers

    def fetch(self, wanted: Mapping[str, Sequence[Fetch]]) -> dict[str, list[Tensor | Failure]]:
        """Returns probabilities that answers left out; see `Executor.fetch`.

        Raises:
            KeyError: There is no such member.
        """

        def make(own: Sequence[Fetch]) -> Callable[[Sequence[Any], Sequence[str]], object]:
            messages = [FetchMessage.of(fetch) for fetch in own]
            return lambda tables, forget: messages

        replies = self._calls("fetch", {member_id: make(own) for member_id, own in wanted.items()}, {})
        return {
            member_id: reply.tensors() if isinstance(reply, FetchReply) else [reply] * len(wanted[member_id])
            for member_id, reply in replies.items()
        }

    def _calls(
        self,
        method: str,
        make: Mapping[str, Callable[[Sequence[Any], Sequence[str]], object]],
        tables: Mapping[str, Mapping[str, Any]],
    ) -> dict[str, Any]:
        """Calls a method of several members at once and returns their replies, or a `Failure`, by member id."""
        replies: dict[str, Any] = {}
        waiting: dict[Any, _Call] = {}
        began = time.monotonic()
        for member_id, message in make.items():
            entry = self._entries[member_id]
            try:
                reference, size = entry.process.call(method, message, tables.get(member_id))
            except Exception as error:
                replies[member_id] = _failed(entry, error)
                continue
            entry.traffic.calls += 1
            entry.traffic.sent += size
            waiting[reference] = _Call(entry, reference)
            self._began[member_id] = began
        while waiting and (left := began + self._timeout - time.monotonic()) > 0:
            for reference in ready(list(waiting), left):
                call = waiting.pop(reference)
                replies[call.entry.member.member_id] = self._reply(call, began)
        for call in waiting.values():
            replies[call.entry.member.member_id] = self._hung(call.entry, time.monotonic() - began)
        return replies

    def _reply(self, call: _Call, began: float) -> Any:
        """The reply to a call, which is there."""
        entry = call.entry
        try:
            data = entry.process.result(call.reference)
            entry.traffic.received += len(data)
            entry.returned = time.monotonic()
            entry.seconds = entry.returned - began
            reply = decode([data])
            return _failed(entry, reply.rebuild()) if isinstance(reply, PortableError) else reply
        except Exception as error:
            return _failed(entry, error)
        finally:
            self._began.pop(entry.member.member_id, None)

    def _hung(self, entry: _Entry, seconds: float) -> Failure:
        """Ends a process that does not reply."""
        self._began.pop(entry.member.member_id, None)
        entry.process.end(f"{entry.process.place} was ended, since it had not replied for {seconds:.1f} s")
        return _failed(entry, MemberTimeoutError(entry.member.name, seconds))

    def release(self, request_id: str, clear: bool = False, member_id: str | None = None) -> None:
        """Frees what members hold of a request, without waiting; see `Executor.release`."""
        for key, entry in self._entries.items():
            if member_id in (None, key):
                entry.process.release(request_id, clear)

    def refresh(self) -> None:
        """Takes over the actors that were started again."""
        for entry in self._entries.values():
            latest = entry.member.supervisor.process
            if latest is not entry.process and latest.lost is None:
                entry.process = latest

    def generation(self, member_id: str) -> int:
        """Returns how often the member has lost its KV cache."""
        return self._entries[member_id].process.generation

    def alive(self, member_id: str) -> bool:
        """Returns whether the member's actor can be called."""
        return self._entries[member_id].process.lost is None

    def health(self, member_id: str) -> MemberHealth:
        """Returns the state of a member; from any thread, without waiting.

        Raises:
            KeyError: There is no such member.
        """
        entry, now = self._entries[member_id], time.monotonic()
        began, lost = self._began.get(member_id), entry.process.lost
        return MemberHealth(
            name=entry.member.name,
            member_id=member_id,
            state="restarting" if lost is not None else "ready" if began is None else "running",
            reason=None if lost is None else str(lost),
            where=entry.process.place,
            since_forward=None if entry.returned is None else now - entry.returned,
            forward_seconds=entry.seconds,
            running_seconds=None if began is None else now - began,
            restarts=entry.process.generation,
        )

    def traffic(self, member_id: str) -> Traffic:
        """Returns what crossed between this process and a member's actors so far."""
        return self._entries[member_id].traffic

    def running(self) -> list[tuple[str, float]]:
        """Returns the id of each member whose reply is awaited and the seconds since it was called.

        May be called from any thread.
        """
        now = time.monotonic()
        return [(member_id, now - began) for member_id, began in self._began.copy().items()]

    def close(self) -> None:
        """Drops all members; their actors end with their leases."""
        self._entries.clear()


def _failed(entry: _Entry, error: BaseException) -> Failure:
    entry.failures += 1
    return Failure(error)


def _answers(masks: Sequence[Tensor | Failure | None], reply: ForwardReply | Failure | None) -> list[Answer]:
    """The answers to the asks of one member, some of which were not sent because their masks failed."""
    received = iter(reply.answers if isinstance(reply, ForwardReply) else ())
    answers: list[Answer] = []
    for mask in masks:
        if isinstance(mask, Failure):
            answers.append(Answer(mask))
        elif isinstance(reply, ForwardReply):
            answers.append(next(received).answer(mask))
        else:
            assert reply is not None, "a member with asks was called"
            answers.append(Answer(reply))
    return answers
