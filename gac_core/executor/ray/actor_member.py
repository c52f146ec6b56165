"""`ActorMember`: a member in an actor as `RayExecutor` holds it, with its state and its calls."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from gac_core.errors import MemberError, MemberTimeoutError
from gac_core.events import ForwardDone, Listener, MemberFailed, MemberRecovered, ignore
from gac_core.executor.messages import Failure
from gac_core.executor.ray.process import Compose, MemberProcess, Traffic
from gac_core.executor.ray.remote_errors import PortableError
from gac_core.executor.ray.remote_member import RemoteMember
from gac_core.executor.ray.wire import ForwardReply, decode
from gac_core.health import MemberHealth, MemberState
from gac_core.model.entries import DocumentCache
from gac_core.tokenization.vocabulary import AlignmentTable


class ActorMember:
    """A member in an actor.

    It is lost from the moment its process ends, or is given up, until `refresh` takes over the next one.

    Args:
        member: The member.
        listener: Receives events.

    Attributes:
        member: The member.
        references: How often it was added to the executor.
        limit: Seconds that a call may take, by its latest asks.
        process: The process that is used until the next `refresh`.
        traffic: What crossed between this process and the member's so far.
        began: When the call began whose reply is awaited, by `time.monotonic`; None if none is.
    """

    def __init__(self, member: RemoteMember, listener: Listener) -> None:
        self.member = member
        self.references = 1
        self.limit = math.inf
        self.process = member.supervisor.process
        self.traffic = Traffic()
        self.began: float | None = None
        self._listener = listener
        self._returned: float | None = None
        self._seconds: float | None = None
        self._cache_bytes = 0
        self._document_cache = DocumentCache()
        self._unsubscribe = member.supervisor.subscribe(self._lost, self._restarted)

    def close(self) -> None:
        """Receives nothing of the member any more."""
        self._unsubscribe()

    # ---- in the engine's thread

    def call(self, method: str, compose: Compose, tables: Mapping[str, AlignmentTable]) -> Any:
        """Calls the actor without waiting and returns the reference of the reply.

        Args:
            method: The actor's method.
            compose: Returns the message; see `MemberProcess.call`.
            tables: The alignment tables that the message refers to, by key.

        Raises:
            MemberError: The process is gone.
        """
        reference, size = self.process.call(method, compose, tables)
        self.began = time.monotonic()
        self.traffic = replace(self.traffic, calls=self.traffic.calls + 1, sent=self.traffic.sent + size)
        return reference

    def reply(self, reference: Any) -> Any:
        """Returns the reply to the call, which is there; a `Failure` if the process ended or its code raised."""
        try:
            data = self.process.result(reference)
            self.traffic = replace(self.traffic, received=self.traffic.received + len(data))
            reply = decode([data])
        except Exception as error:
            self.began = None
            return Failure(error)
        self._returned = time.monotonic()
        self._seconds = self._returned - (self.began or self._returned)
        self.began = None
        if isinstance(reply, PortableError):
            self.process.resend_tables()
            return Failure(reply.rebuild())
        if isinstance(reply, ForwardReply):
            self.member.times.restore(reply.times)
            self._cache_bytes, self._document_cache = reply.cache_bytes, reply.document_cache
            if self._listener is not ignore:
                tokens = sum(answer.computed for answer in reply.answers)
                done = ForwardDone(self.member.name, self.member.member_id, self._seconds, len(reply.answers), tokens)
                self._listener(done)
        return reply

    def give_up(self) -> Failure:
        """Ends the process, which has not replied in time."""
        seconds = time.monotonic() - (self.began or 0.0)
        self.began = None
        self.process.end(MemberTimeoutError(self.member.name, seconds))
        return Failure(self.error or MemberTimeoutError(self.member.name, seconds))

    @property
    def error(self) -> MemberError | None:
        """Why it cannot be called now; None if it can."""
        return self.process.lost

    def refresh(self) -> None:
        """Takes over the process that was started in the place of a lost one."""
        latest = self.member.supervisor.process
        if latest is not self.process and latest.lost is None:
            self.process = latest
            self._cache_bytes, self._document_cache = 0, DocumentCache()

    # ---- in the supervisor's thread

    def _lost(self, process: MemberProcess, error: MemberError) -> None:
        seconds = error.seconds if isinstance(error, MemberTimeoutError) else 0.0
        name, member_id = self.member.name, self.member.member_id
        self._listener(MemberFailed(name, member_id, error.reason, type(error).__name__, None, seconds))

    def _restarted(self, process: MemberProcess, seconds: float) -> None:
        self._listener(MemberRecovered(self.member.name, self.member.member_id, seconds, restarted=True))

    # ---- in any thread

    def health(self) -> MemberHealth:
        """Returns its state; takes no lock."""
        now, began, returned = time.monotonic(), self.began, self._returned
        supervisor = self.member.supervisor
        latest, error = supervisor.process, supervisor.restart_error
        lost = latest.lost
        state: MemberState = "ready" if began is None else "running"
        reason = None
        if lost is not None:
            state = "restarting" if error is None else "lost"
            reason = lost.reason if error is None else f"{lost.reason}; it could not be started again: {error}"
        return MemberHealth(
            name=self.member.name,
            member_id=self.member.member_id,
            state=state,
            reason=reason,
            where=latest.place,
            since_forward=None if returned is None else now - returned,
            forward_seconds=self._seconds,
            running_seconds=None if began is None else now - began,
            weight_bytes=self.member.facts.weight_bytes,
            cache_bytes=self._cache_bytes,
            document_cache_bytes=self._document_cache.nbytes,
            documents=self._document_cache.documents,
            restarts=latest.generation,
        )
