"""`RayExecutor`: runs members in actors of Ray."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gac_core.events import Listener, ignore
from gac_core.executor.base import ExecutorMember
from gac_core.executor.messages import Answer, Ask, Failure, Fetch
from gac_core.executor.ray.actor_member import ActorMember
from gac_core.executor.ray.process import Compose, Traffic, ready
from gac_core.executor.ray.remote_member import RemoteMember
from gac_core.executor.ray.wire import (
    AskMessage,
    FetchMessage,
    FetchReply,
    ForwardMessage,
    ForwardReply,
)
from gac_core.health import MemberHealth
from gac_core.tokenization.vocabulary import AlignmentTable


@dataclass(frozen=True)
class _Call:
    """A call of one member.

    Attributes:
        member: The member.
        compose: Returns its message.
        tables: The alignment tables that the message refers to, by key.
    """

    member: ActorMember
    compose: Compose
    tables: Mapping[str, AlignmentTable]


@dataclass(frozen=True)
class _Prepared:
    """An ask with its mask, which was evaluated in this process, and its message, or why there is none."""

    ask: Ask
    mask: Tensor | None
    message: AskMessage | Failure

    @classmethod
    def of(cls, ask: Ask) -> _Prepared:
        mask = _evaluated_mask(ask)
        return cls(ask, None, mask) if isinstance(mask, Failure) else cls(ask, mask, _message_of(ask, mask))


class RayExecutor:
    """Runs members in actors: one call per member and step, all members at the same time.

    A member whose actor ends, or does not reply within `Ask.timeout`, fails its asks alone. Its actor is ended, started
    again by its `MemberSupervisor`, and used from the next `refresh` on.

    Args:
        listener: Receives events, in the engine's thread or in those of supervisors. Default: does nothing.
    """

    def __init__(self, listener: Listener = ignore) -> None:
        self._members: dict[str, ActorMember] = {}
        self._listener = listener

    def add_member(self, member: ExecutorMember) -> None:
        """Adds a member of `ray_pool`. One that is added several times stays until it is removed as often."""
        assert isinstance(member, RemoteMember), "its model is in an actor"
        known = self._members.get(member.member_id)
        if known is not None:
            known.references += 1
            return
        self._members[member.member_id] = ActorMember(member, self._listener)

    def remove_member(self, member_id: str) -> None:
        """Removes a member, which stays open; its requests must be released before.

        Raises:
            KeyError: There is no such member.
        """
        known = self._members[member_id]
        known.references -= 1
        if not known.references:
            self._members.pop(member_id).close()

    def forward(
        self, asks: Mapping[str, Sequence[Ask]], prefill_seconds: float | None = None
    ) -> dict[str, list[Answer]]:
        """Computes distributions, those of all members at the same time; see `Executor.forward`.

        Grammar masks are evaluated in this process, before the call of their member.

        Raises:
            KeyError: There is no such member.
        """
        prepared = {key: [_Prepared.of(ask) for ask in own] for key, own in asks.items()}
        calls: dict[str, _Call] = {}
        for key, own in prepared.items():
            member = self._members[key]
            member.limit = min((each.ask.timeout for each in own if each.ask.timeout is not None), default=math.inf)
            messages = [each.message for each in own if isinstance(each.message, AskMessage)]
            if messages:
                tables = _tables_of([each.ask for each in own if isinstance(each.message, AskMessage)])
                calls[key] = _Call(member, _forward(messages, prefill_seconds), tables)
        replies = _run("forward", calls)
        return {key: _answers(own, replies.get(key)) for key, own in prepared.items()}

    def fetch(self, wanted: Mapping[str, Sequence[Fetch]]) -> dict[str, list[Tensor | Failure]]:
        """Returns probabilities that answers left out; see `Executor.fetch`.

        Raises:
            KeyError: There is no such member.
        """
        calls = {key: _Call(self._members[key], _fetch(own), {}) for key, own in wanted.items()}
        return {
            key: reply.tensors() if isinstance(reply, FetchReply) else [reply] * len(wanted[key])
            for key, reply in _run("fetch", calls).items()
        }

    def release(self, request_id: str, clear: bool = False, member_id: str | None = None) -> None:
        """Frees what members hold of a request, without waiting; see `Executor.release`."""
        for key, member in self._members.items():
            if member_id in (None, key):
                member.process.release(request_id, clear)

    def refresh(self) -> None:
        """Takes over the actors that were started again."""
        for member in self._members.values():
            member.refresh()

    def generation(self, member_id: str) -> int:
        """Returns how often the member has lost its KV cache."""
        return self._members[member_id].process.generation

    def alive(self, member_id: str) -> bool:
        """Returns whether the member's actor can be called."""
        return self._members[member_id].error is None

    def health(self, member_id: str) -> MemberHealth:
        """Returns the state of a member; from any thread, without waiting.

        Raises:
            KeyError: There is no such member.
        """
        return self._members[member_id].health()

    def traffic(self, member_id: str) -> Traffic:
        """Returns what crossed between this process and a member's actors so far; from any thread.

        Raises:
            KeyError: There is no such member.
        """
        return self._members[member_id].traffic

    def running(self) -> list[tuple[str, float]]:
        """Returns the id of each member whose reply is awaited and the seconds since it was called.

        May be called from any thread.
        """
        now = time.monotonic()
        began = [(key, member.began) for key, member in list(self._members.items())]
        return [(key, now - each) for key, each in began if each is not None]

    def close(self) -> None:
        """Drops all members; their actors end with their leases."""
        for member in self._members.values():
            member.close()
        self._members.clear()


def _forward(asks: Sequence[AskMessage], prefill_seconds: float | None) -> Compose:
    return lambda tables, forget: ForwardMessage(asks, prefill_seconds, tables, forget)


def _fetch(wanted: Sequence[Fetch]) -> Compose:
    return lambda tables, forget: [FetchMessage.of(fetch) for fetch in wanted]


def _run(method: str, calls: Mapping[str, _Call]) -> dict[str, Any]:
    """Makes calls at the same time and returns their replies, or a `Failure`, by member id."""
    replies: dict[str, Any] = {}
    waiting: dict[Any, str] = {}
    began = time.monotonic()
    for key, call in calls.items():
        try:
            waiting[call.member.call(method, call.compose, call.tables)] = key
        except Exception as error:
            replies[key] = Failure(error)
    while waiting:
        left = min(calls[key].member.limit for key in waiting.values()) - (time.monotonic() - began)
        for reference in ready(list(waiting), max(0.0, left)):
            key = waiting.pop(reference)
            replies[key] = calls[key].member.reply(reference)
        for reference, key in list(waiting.items()):
            if time.monotonic() - began > calls[key].member.limit:
                replies[key] = calls[key].member.give_up()
                del waiting[reference]
    return replies


def _answers(own: Sequence[_Prepared], reply: ForwardReply | Failure | None) -> list[Answer]:
    """The answers to the asks of one member; those without a message were not sent."""
    received = iter(reply.answers if isinstance(reply, ForwardReply) else ())
    answers: list[Answer] = []
    for each in own:
        if isinstance(each.message, Failure):
            answers.append(Answer(each.message))
        elif isinstance(reply, ForwardReply):
            answers.append(next(received).answer(each.mask))
        else:
            assert reply is not None, "a member with usable asks was called"
            answers.append(Answer(reply))
    return answers


def _evaluated_mask(ask: Ask) -> Tensor | Failure | None:
    """Returns which union tokens a grammar allows, on the CPU; the failure of the request where that raises."""
    if ask.mask is None:
        return None
    try:
        return ask.mask().cpu()
    except BaseException as error:
        return Failure(error, "masking what the grammar does not allow", of_member=False)


def _message_of(ask: Ask, mask: Tensor | None) -> AskMessage | Failure:
    """Returns the message of an ask, whose mask was evaluated; the failure of the request where it has none."""
    try:
        return AskMessage.of(ask, mask)
    except Exception as error:
        return Failure(error, "sending its gate rule to an actor", of_member=False)


def _tables_of(asks: Sequence[Ask]) -> Mapping[str, AlignmentTable]:
    """Returns the alignment tables that some asks need, by key."""
    return {ask.alignment.table.key: ask.alignment.table for ask in asks}
