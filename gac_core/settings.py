"""Settings of all requests within a context: `use_threshold`, `use_gate`, `use_weights` and `use_combine`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Literal

from gac_core.sampling import SamplingParams

Threshold = float | Literal["default"] | None
RequestWeights = Mapping[str, float] | Sequence[float] | Literal["auto", "perplexity"]
# A tuple of the value, since None is a value.
_Ambient = ContextVar[tuple[Any] | None]
_threshold: _Ambient = ContextVar("gac_threshold", default=None)
_gate: _Ambient = ContextVar("gac_gate", default=None)
_weights: _Ambient = ContextVar("gac_weights", default=None)
_combine: _Ambient = ContextVar("gac_combine", default=None)


@contextmanager
def _set(variable: _Ambient, value: Any) -> Iterator[None]:
    token = variable.set((value,))
    try:
        yield
    finally:
        variable.reset(token)


def _get(variable: _Ambient, otherwise: Any) -> Any:
    ambient = variable.get()
    return otherwise if ambient is None else ambient[0]


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
    with _set(_threshold, SamplingParams(threshold=threshold).threshold):
        yield


@contextmanager
def use_gate(gate: str | None) -> Iterator[None]:
    """Sets the gate of every request made within the context, as `use_threshold` sets the threshold.

    Args:
        gate: Name of a member; None: the ensemble's own gate. A name that is not a member is an error of the
            requests.

    Raises:
        RequestError: It is not a string.
    """
    with _set(_gate, SamplingParams(gate=gate).gate):
        yield


@contextmanager
def use_weights(weights: RequestWeights | None) -> Iterator[None]:
    """Sets the weights of every request made within the context, as `use_threshold` sets the threshold.

    Args:
        weights: As `SamplingParams.weights`; None: the ensemble's own weights. Weights that do not fit the members are
            an error of the requests.

    Raises:
        RequestError: A weight is not a number of 0 or more.
    """
    params = SamplingParams(weights=weights)  # type: ignore[arg-type]  # Sequences are converted.
    with _set(_weights, params.weights):
        yield


@contextmanager
def use_combine(rule: str | None) -> Iterator[None]:
    """Sets how distributions are combined in every request made within the context, as `use_threshold` the threshold.

    Args:
        rule: As `SamplingParams.combine`; None: the ensemble's own rule.

    Raises:
        RequestError: There is no rule of this name.
    """
    with _set(_combine, SamplingParams(combine=rule).combine):
        yield


def ambient_threshold(otherwise: Threshold) -> Threshold:
    """Returns the threshold that `use_threshold` set in this context; ``otherwise`` without one."""
    threshold: Threshold = _get(_threshold, otherwise)
    return threshold


def ambient_gate(otherwise: str | None) -> str | None:
    """Returns the gate that `use_gate` set in this context; ``otherwise`` without one."""
    gate: str | None = _get(_gate, otherwise)
    return gate


def ambient_weights(otherwise: RequestWeights | None) -> RequestWeights | None:
    """Returns the weights that `use_weights` set in this context; ``otherwise`` without any."""
    weights: RequestWeights | None = _get(_weights, otherwise)
    return weights


def ambient_combine(otherwise: str | None) -> str | None:
    """Returns the rule that `use_combine` set in this context; ``otherwise`` without one."""
    rule: str | None = _get(_combine, otherwise)
    return rule
