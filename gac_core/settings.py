"""Settings of all requests within a context: `use_threshold` and `use_gate`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Literal

from gac_core.sampling import SamplingParams

Threshold = float | Literal["default"] | None
_ambient: ContextVar[tuple[Threshold] | None] = ContextVar("gac_threshold", default=None)
_ambient_gate: ContextVar[tuple[str | None] | None] = ContextVar("gac_gate", default=None)


@contextmanager
def use_threshold(threshold: Threshold) -> Iterator[None]:
    """Sets the threshold of every request made within the context, also through frameworks that pass no arguments on.

    It takes precedence over a wrapper's default; a call's own argument takes precedence over it. It is a context
    variable: asyncio tasks inherit it, and threads that run in a copy of the context.

    Args:
        threshold: As `SamplingParams.threshold`.

    Raises:
        RequestError: It is out of range.
    """
    SamplingParams(threshold=threshold)
    token = _ambient.set((threshold,))
    try:
        yield
    finally:
        _ambient.reset(token)


def ambient_threshold(otherwise: Threshold) -> Threshold:
    """Returns the threshold that `use_threshold` set in this context; ``otherwise`` without one."""
    ambient = _ambient.get()
    return otherwise if ambient is None else ambient[0]


@contextmanager
def use_gate(gate: str | None) -> Iterator[None]:
    """Sets the gate of every request made within the context, as `use_threshold` sets the threshold.

    Args:
        gate: Name of a member; None: the ensemble's own gate. A name that is not a member is an error of the
            requests.

    Raises:
        RequestError: It is not a string.
    """
    SamplingParams(gate=gate)
    token = _ambient_gate.set((gate,))
    try:
        yield
    finally:
        _ambient_gate.reset(token)


def ambient_gate(otherwise: str | None) -> str | None:
    """Returns the gate that `use_gate` set in this context; ``otherwise`` without one."""
    ambient = _ambient_gate.get()
    return otherwise if ambient is None else ambient[0]
