"""`LocalMember`: a member of this process as `LocalExecutor` holds it, with its state and its calls."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from gac_core.errors import MemberTimeoutError
from gac_core.events import ForwardDone, Listener, MemberFailed, MemberRecovered, ignore
from gac_core.executor.device_thread import TimedCall
from gac_core.executor.evaluator import Evaluator
from gac_core.executor.messages import Answer, Ask
from gac_core.health import MemberHealth, MemberState
from gac_core.model.member import Member

logger = logging.getLogger(__name__)

R = TypeVar("R")


@dataclass(frozen=True)
class _Release:
    """A release that is still to be carried out; see `Executor.release`."""

    request_id: str
    clear: bool


@dataclass(frozen=True)
class _Hung:
    """A call that was given up and has not returned: its error, and when it was given up by `time.monotonic`."""

    error: MemberTimeoutError
    since: float


class LocalMember:
    """A member of this process.

    It is hung from the moment a call of it is given up until that call returns.

    Args:
        member: The member.
        compact: As in `Evaluator`.
        listener: Receives events.

    Attributes:
        member: The member.
        evaluator: Answers its asks.
        references: How often it was added to the executor.
        limit: Seconds that a call may take, by its latest asks.
        began: When the running call began, by `time.monotonic`; None if none is running.
    """

    def __init__(self, member: Member, compact: bool, listener: Listener) -> None:
        self.member = member
        self.evaluator = Evaluator(member, compact)
        self.references = 1
        self.limit = math.inf
        self.began: float | None = None
        self._listener = listener
        self._ended: float | None = None
        self._seconds: float | None = None
        # Held to change what follows.
        self._lock = threading.Lock()
        self._hung: _Hung | None = None
        self._releases: list[_Release] = []

    # ---- in the engine's thread

    @property
    def error(self) -> MemberTimeoutError | None:
        """Why it cannot compute now; None if it can."""
        hung = self._hung
        return None if hung is None else hung.error

    def release(self, request_id: str, clear: bool) -> None:
        """Frees what it holds of a request: now, or as soon as no forward holds the model; never raises or waits."""
        with self._lock:
            self._releases.append(_Release(request_id, clear))
        self.retry_releases()

    def retry_releases(self) -> None:
        """Carries out what is still to be released, unless a forward holds the model."""
        if self._releases and self._hung is None:
            self._carry_out_releases(wait=False)

    def hang(self) -> None:
        """Notes that the running call was given up."""
        now = time.monotonic()
        seconds = now - (self.began or now)
        error = MemberTimeoutError(self.member.name, seconds)
        with self._lock:
            self._hung = _Hung(error, now)
        self._log(logging.ERROR, "member %r is hung: its forward has been running for %.1f s", "member_failed", seconds)
        failed = MemberFailed(
            self.member.name, self.member.member_id, error.reason, type(error).__name__, None, seconds
        )
        self._listener(failed)

    # ---- in the thread of its device

    def forward(self, asks: Sequence[Ask], prefill_seconds: float | None) -> list[Answer]:
        """Computes the answers to some asks."""
        self._carry_out_releases(wait=True)
        began = time.monotonic()
        answers = self.evaluator.forward(asks, prefill_seconds)
        self._ended = time.monotonic()
        self._seconds = self._ended - began
        if self._listener is not ignore and self._hung is None:
            tokens = sum(answer.computed for answer in answers)
            self._listener(ForwardDone(self.member.name, self.member.member_id, self._seconds, len(asks), tokens))
        return answers

    def recover(self) -> None:
        """Notes that the call which was given up has returned; what was to be released meanwhile is released first."""
        hung = self._hung
        assert hung is not None, "a call was given up"
        self._carry_out_releases(wait=True)
        with self._lock:
            self._hung = None
        seconds = time.monotonic() - hung.since
        self._log(logging.INFO, "member %r works again, %.1f s after it was given up", "member_recovered", seconds)
        self._listener(MemberRecovered(self.member.name, self.member.member_id, seconds))

    def _carry_out_releases(self, wait: bool) -> None:
        """Releases what is to be released; what fails, for want of memory, is tried again at the next call.

        Args:
            wait: Whether to wait for a forward that holds the model.
        """
        with self._lock:
            releases, self._releases = self._releases, []
        left = []
        for release in releases:
            try:
                if not self.evaluator.release(release.request_id, release.clear, wait):
                    left.append(release)
            except BaseException:
                logger.exception("member %r could not free a request's slot; it is tried again", self.member.name)
                left.append(release)
        if left:
            with self._lock:
                self._releases = [*left, *self._releases]

    # ---- in any thread

    def health(self) -> MemberHealth:
        """Returns its state; takes no lock."""
        now, began, ended, hung = time.monotonic(), self.began, self._ended, self._hung
        document_cache = self.member.document_cache
        state: MemberState = "hung" if hung is not None else "ready" if began is None else "running"
        return MemberHealth(
            name=self.member.name,
            member_id=self.member.member_id,
            state=state,
            reason=None if hung is None else hung.error.reason,
            where=str(self.member.device),
            since_forward=None if ended is None else now - ended,
            forward_seconds=self._seconds,
            running_seconds=None if began is None else now - began,
            weight_bytes=self.member.weight_bytes,
            cache_bytes=self.member.cache_bytes,
            document_cache_bytes=document_cache.nbytes,
            documents=document_cache.documents,
        )

    def _log(self, level: int, message: str, event: str, seconds: float) -> None:
        name = self.member.name
        extra = {"event": event, "member": name, "request_id": None, "seconds": seconds}
        logger.log(level, message, name, seconds, extra=extra)


class MemberCall(TimedCall, Generic[R]):
    """A call of a member, with a result for each of its arguments.

    Args:
        member: The member.
        work: Makes the call.
        failed: Returns the results of a call that raised, was given up, or cannot be made.
    """

    def __init__(
        self, member: LocalMember, work: Callable[[], list[R]], failed: Callable[[BaseException], list[R]]
    ) -> None:
        super().__init__(member.limit)
        self.member = member
        self._work = work
        self._failed = failed
        self._made: list[R] = []
        self._error: BaseException | None = member.error

    @property
    def possible(self) -> bool:
        """Whether the member can be called."""
        return self._error is None

    def run(self) -> None:
        """Makes the call."""
        self.member.began = time.monotonic()
        try:
            made = self._work()
        except BaseException as error:
            # Errors of the model are results already; this one is a defect or a closed member.
            logger.exception("member %r failed", self.member.member.name)
            made = self._failed(error)
        self.member.began = None
        self._made = made

    def give_up(self) -> None:
        """Marks the member as hung."""
        self.member.hang()
        self._error = self.member.error

    def returned_late(self) -> None:
        """Marks the member as usable again; the results are discarded."""
        self.member.recover()

    @property
    def results(self) -> list[R]:
        """The results, once the call has ended or was given up."""
        return self._made if self._error is None else self._failed(self._error)
