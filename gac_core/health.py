"""The state of an ensemble and its members at one moment (`Ensemble.health`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MemberState = Literal["ready", "running", "hung", "lost", "restarting", "closed"]


@dataclass(frozen=True)
class MemberHealth:
    """The state of one member.

    Attributes:
        name: Its name.
        member_id: Its id in the executor.
        state: ``"ready"``: no forward is running. ``"running"``: one is. ``"hung"``: one is, for longer than
            ``forward_timeout``. ``"lost"``: it is gone. ``"restarting"``: it is gone and being started again.
            ``"closed"``: its ensemble is closed, or was loaded before this process was forked.
        reason: Why it is hung, lost or restarting; None otherwise.
        where: Device or node that it runs on.
        since_forward: Seconds since its last forward returned; None before the first.
        forward_seconds: Duration of that forward; None before the first.
        running_seconds: How long the current forward has been running; None if none is.
        requests: Requests that run and use it.
        queue: Requests that wait for a place in the batch and will use it.
        weight_bytes: Memory of its weights, which several members may share.
        cache_bytes: Memory of its KV cache, without what is kept of documents.
        document_cache_bytes: Memory of the keys and values that are kept of documents (`Ensemble.warm`).
        documents: How many are kept.
        failures: How often it failed, as a whole or for one request.
        restarts: How often it was started again.
    """

    name: str
    member_id: str
    state: MemberState = "ready"
    reason: str | None = None
    where: str = ""
    since_forward: float | None = None
    forward_seconds: float | None = None
    running_seconds: float | None = None
    requests: int = 0
    queue: int = 0
    weight_bytes: int = 0
    cache_bytes: int = 0
    document_cache_bytes: int = 0
    documents: int = 0
    failures: int = 0
    restarts: int = 0

    @property
    def alive(self) -> bool:
        """Whether the member can run forwards now."""
        return self.state in ("ready", "running")


@dataclass(frozen=True)
class EnsembleHealth:
    """The state of an ensemble.

    Attributes:
        healthy: Whether requests are answered with all members: every member is alive, and the engine is neither stuck
            nor closed.
        reason: Why it is not healthy; None if it is.
        members: The members' states, in the ensemble's order.
        requests: Requests of the ensemble that run.
        queue: Requests of the ensemble that wait.
        step_seconds: How long the engine's current step has been running; None between steps.
    """

    healthy: bool
    reason: str | None
    members: tuple[MemberHealth, ...]
    requests: int = 0
    queue: int = 0
    step_seconds: float | None = None
