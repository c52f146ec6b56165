"""Defaults, ambient settings and a call's own arguments as one request's parameters.

Shared by the wrappers for frameworks; independent of ensembles and models.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from gac_core.errors import UnknownArgumentError
from gac_core.sampling import SamplingParams

SAMPLING_FIELDS = SamplingParams.names()
"""The names of all parameters of a request."""

Threshold = float | Literal["default"] | None
_ambient: ContextVar[tuple[Threshold] | None] = ContextVar("gac_threshold", default=None)
_ambient_gate: ContextVar[tuple[str | None] | None] = ContextVar("gac_gate", default=None)


@contextmanager
def use_threshold(threshold: Threshold) -> Iterator[None]:
    """Sets the threshold of every request made within, through frameworks that pass no arguments on.

    It stands above a wrapper's own default and below a call's argument. Threads and tasks see it where their starter
    hands its context on, as asyncio does.

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
    """Returns the threshold that `use_threshold` set here, or another one where it did not."""
    ambient = _ambient.get()
    return otherwise if ambient is None else ambient[0]


@contextmanager
def use_gate(gate: str | None) -> Iterator[None]:
    """Sets the gate of every request made within, as `use_threshold` sets the threshold.

    Args:
        gate: Name of a member; None: the ensemble's own gate. A name that is not a member is refused by the requests.

    Raises:
        RequestError: It is not a name.
    """
    SamplingParams(gate=gate)
    token = _ambient_gate.set((gate,))
    try:
        yield
    finally:
        _ambient_gate.reset(token)


def ambient_gate(otherwise: str | None) -> str | None:
    """Returns the gate that `use_gate` set here, or another one where it did not."""
    ambient = _ambient_gate.get()
    return otherwise if ambient is None else ambient[0]


def request_params(defaults: Mapping[str, Any], overrides: Mapping[str, Any]) -> SamplingParams:
    """Returns the parameters of one call.

    Args:
        defaults: A wrapper's own values; names that are no parameters are left aside.
        overrides: The call's arguments.

    Raises:
        UnknownArgumentError: A call's argument has a name that is no parameter.
        RequestError: A value is out of its range.
    """
    unknown = set(overrides) - SAMPLING_FIELDS
    if unknown:
        raise UnknownArgumentError(unknown, SAMPLING_FIELDS)
    values = {name: value for name, value in defaults.items() if name in SAMPLING_FIELDS}
    values["threshold"] = ambient_threshold(values.get("threshold", "default"))
    values["gate"] = ambient_gate(values.get("gate"))
    values.update(overrides)
    if isinstance(values.get("logprobs"), bool):
        # As the frameworks' other models have it: whether there shall be any.
        values["logprobs"] = 1 if values["logprobs"] else None
    return SamplingParams(**values)
