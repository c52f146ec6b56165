"""Events of members and steps, for metrics and monitoring (`Ensemble.add_listener`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class MemberFailed:
    """A member failed: as a whole, or for one request.

    Attributes:
        member: Its name.
        member_id: Its id in the executor.
        reason: What went wrong, as `MemberError.reason`.
        error: Name of the exception's class, for example ``"MemberTimeoutError"``.
        request_id: The request it failed for, as callers see its id; None if the member does not work for any request
            until a `MemberRecovered`.
        seconds: How long the forward had been running; 0 if none was.
    """

    member: str
    member_id: str
    reason: str
    error: str
    request_id: str | None = None
    seconds: float = 0.0


@dataclass(frozen=True)
class MemberRecovered:
    """A member that had failed as a whole works again.

    Attributes:
        member: Its name.
        member_id: Its id in the executor.
        seconds: Time since it failed.
        restarted: Whether it was started anew and has lost its KV cache; otherwise its forward returned late.
    """

    member: str
    member_id: str
    seconds: float
    restarted: bool = False


@dataclass(frozen=True)
class ForwardDone:
    """A member ran its chunks of one step.

    Attributes:
        member: Its name.
        member_id: Its id in the executor.
        seconds: Wall time.
        requests: Requests that it computed for.
        tokens: Tokens that it computed.
    """

    member: str
    member_id: str
    seconds: float
    requests: int
    tokens: int


@dataclass(frozen=True)
class StepDone:
    """A step of the engine, for all ensembles that share it.

    Attributes:
        seconds: Wall time.
        requests: Requests in it.
        tokens: Union tokens committed in it.
        waiting: Requests that waited for a place in the batch.
    """

    seconds: float
    requests: int
    tokens: int
    waiting: int


Event = MemberFailed | MemberRecovered | ForwardDone | StepDone
Listener = Callable[[Event], None]
"""Called in a thread of the library, which waits for it; must return soon and should not raise.

It may call `Ensemble.health` and `Ensemble.close`, but no ensemble may be asked in it.
"""


def ignore(event: Event) -> None:
    """The listener that does nothing."""
