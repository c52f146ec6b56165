"""`MemberProcess`: one actor of a member, from its start to its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from gac_core.config import EnsembleConfig
from gac_core.errors import MemberError, MemberLostError, shorten
from gac_core.executor.ray import cluster
from gac_core.executor.ray.actor import LoadFailure, MemberActor, MemberFacts, Threads
from gac_core.executor.ray.wire import decode, encode, split
from gac_core.tokenization.vocabulary import AlignmentTable

WAIT_SECONDS = 5.0
"""How long one call waits at most: Ray may be shut down meanwhile."""

Compose = Callable[[Sequence[AlignmentTable], Sequence[str]], object]
"""Returns a message, given the alignment tables to send with it and the keys of those to drop."""

MAX_TABLES = 16
"""Alignment tables that an actor keeps at most."""

# Results of up to this size come with the reply; larger ones would go through shared memory and to another node as a
# second message.
_INLINE_BYTES = 2**24


@dataclass(frozen=True)
class Traffic:
    """What crossed between this process and a member's actors so far.

    Attributes:
        calls: Number of calls.
        sent: Bytes of their messages.
        received: Bytes of their replies.
    """

    calls: int = 0
    sent: int = 0
    received: int = 0


class MemberProcess:
    """One actor of a member. Thread-safe.

    Args:
        name: The member's name, for errors.
        config: The configuration that the actor loads, with this member alone.
        threads: The threads that it uses on a CPU.
        options: Resources and place, as `Placement.options` returns them.
        generation: Which process of the member it is, from 0.

    Attributes:
        facts: What the actor reported of the member; None until it is loaded.
        generation: As given.
    """

    def __init__(
        self, name: str, config: EnsembleConfig, threads: Threads, options: Mapping[str, Any], generation: int
    ) -> None:
        self.name = name
        self.generation = generation
        self.facts: MemberFacts | None = None
        self._lock = threading.Lock()
        self._lost: MemberError | None = None
        # Keys of the alignment tables that it has; the least recently used first.
        self._tables: list[str] = []
        kind: Any = ray.remote(concurrency_groups={"watch": 1})(MemberActor)  # type: ignore[call-overload]
        environment = {"env_vars": {"RAY_max_direct_call_object_size": str(_INLINE_BYTES)}}
        placed = kind.options(max_restarts=0, max_task_retries=0, runtime_env=environment, **options)
        self._actor = placed.remote()
        self._loaded = self._actor.load.remote(config, threads)
        self._gone = self._actor.watch.options(concurrency_group="watch").remote()

    def wait_loaded(self, seconds: float) -> MemberFacts | LoadFailure | None:
        """Waits for the member to be loaded.

        Args:
            seconds: How long to wait at most.

        Returns:
            Its facts; why it could not be loaded; or None if that is still going on.

        Raises:
            MemberError: The process ended.
        """
        if not ready([self._loaded], seconds):
            return None
        result: MemberFacts | LoadFailure = decode([self.result(self._loaded)])
        if isinstance(result, MemberFacts):
            self.facts = result
        return result

    def wait_gone(self, seconds: float) -> bool:
        """Waits for the end of the process, ``seconds`` at most; returns whether it ended."""
        if not ready([self._gone], seconds):
            return False
        with suppress(MemberError):
            self.result(self._gone)
        return True

    @property
    def lost(self) -> MemberError | None:
        """Why no more calls are possible; None while they are."""
        if self._lost is None and not cluster.usable():
            self._lost = MemberLostError(self.name, "Ray was shut down in this process; load the ensemble anew")
        return self._lost

    @property
    def place(self) -> str:
        """Where it runs, for messages."""
        return "a process that is starting" if self.facts is None else self.facts.place

    def call(self, method: str, compose: Compose, tables: Mapping[str, AlignmentTable]) -> tuple[Any, int]:
        """Sends a message without waiting.

        Args:
            method: The actor's method.
            compose: Returns the message.
            tables: The alignment tables that it refers to, by key.

        Returns:
            The reference of the reply, and the bytes sent.

        Raises:
            MemberError: The process is gone.
        """
        with self._lock:
            # One message is composed and sent at a time: which tables the actor has follows from their order.
            if self.lost is not None:
                raise self.lost
            new = [table for key, table in tables.items() if key not in self._tables]
            known = [*(key for key in self._tables if key not in tables), *tables]
            forget = known[: max(0, len(known) - max(MAX_TABLES, len(tables)))] if tables else []
            data = encode(compose(new, forget))
            try:
                reference = getattr(self._actor, method).remote(*split(data))
            except Exception as error:
                raise self.mark_lost(error) from error
            self._tables = known[len(forget) :]
            return reference, len(data)

    def resend_tables(self) -> None:
        """Sends alignment tables anew when they are next needed: the actor may not have read a message."""
        with self._lock:
            self._tables = []

    def release(self, request_id: str, clear: bool) -> None:
        """Frees what the actor holds of a request, without waiting; never raises."""
        try:
            if self.lost is None:
                self._actor.release.options(num_returns=0).remote(request_id, clear)
        except Exception as error:
            self.mark_lost(error)

    def result(self, reference: Any) -> Any:
        """Returns a reply that is there.

        Raises:
            MemberError: The process ended before it replied.
        """
        if self.lost is not None:
            raise self.lost
        try:
            return ray.get(reference, timeout=WAIT_SECONDS)
        except Exception as error:
            raise self.mark_lost(error) from error

    def mark_lost(self, error: Exception) -> MemberError:
        """Notes that no more calls are possible, and ends the process; returns the error of those that are made."""
        cause = getattr(error, "cause", None) or error
        # Ray's messages begin with ids and end with advice.
        text = str(cause).split("\nThe actor is dead because", 1)[-1].split("Some common causes include", 1)[0]
        text = shorten(" ".join(text.split()))
        self.end(MemberLostError(self.name, f"{self.place} is gone: {type(cause).__name__}: {text}"))
        assert self._lost is not None, "it was ended"
        return self._lost

    def end(self, error: MemberError) -> None:
        """Ends the process, also one that hangs; idempotent.

        Args:
            error: That of later calls.
        """
        if self._lost is None:
            self._lost = error
        if cluster.usable():
            with suppress(Exception):
                ray.kill(self._actor)


def ready(references: Sequence[Any], seconds: float) -> list[Any]:
    """Returns those of some references that have a result, of an error as well; waits for one, ``seconds`` at most."""
    until = time.monotonic() + seconds
    while cluster.usable():
        left = max(0.0, until - time.monotonic())
        found, _ = ray.wait(list(references), timeout=min(left, WAIT_SECONDS))
        if found or left <= WAIT_SECONDS:
            return found
    # Reading one of them raises, since Ray was shut down.
    return list(references)
