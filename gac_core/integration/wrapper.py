"""`EnsembleModel`: methods that models of all frameworks have."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from contextvars import Context
from types import TracebackType
from typing import Any, Protocol, Self, TypeVar

from gac_core.engine.session import CLOSE_TIMEOUT
from gac_core.ensemble import Ensemble
from gac_core.errors import ConfigError, UnknownArgumentError
from gac_core.integration.arguments import request_params
from gac_core.integration.fields import FIXED_FIELDS, SAMPLING_FIELDS
from gac_core.integration.lease import EnsembleLease
from gac_core.integration.sources import check_defaults
from gac_core.sampling import SamplingParams
from gac_core.settings import Threshold


class _Wrapper(Protocol):
    """What `EnsembleModel` needs of the class that it is mixed into, a pydantic model."""

    _lease: EnsembleLease

    @property
    def _ensemble(self) -> Ensemble: ...

    def model_copy(self: _W, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> _W: ...

    def _sampling_params(self, overrides: Mapping[str, Any], **defaults: Any) -> SamplingParams: ...


_W = TypeVar("_W", bound=_Wrapper)


class EnsembleModel:
    """Methods of a framework's model: its ensemble, changes of its fields, copies, and closing.

    Mixed into a pydantic class that has a field for each parameter of a request (`SAMPLING_FIELDS`; one that it lacks
    has its default) and a `EnsembleLease` on its ensemble as its private attribute ``_lease``.
    """

    _lease: EnsembleLease

    @property
    def _ensemble(self) -> Ensemble:
        """The loaded ensemble, shared with copies; raises an `EngineClosedError` if this model is closed."""
        return self._lease.ensemble

    @property
    def model_name(self) -> str:
        """The members' names, joined by ``+``."""
        return "+".join(self._lease.config.names)

    def _hold(self, ensemble: Ensemble, owned: bool, params: SamplingParams) -> None:
        """Takes the ensemble of a new model, and leaves it again if the model's default parameters do not fit.

        Args:
            ensemble: The ensemble.
            owned: Whether the model has loaded it itself.
            params: The model's own parameters, as `own_params` returns them.

        Raises:
            RequestError: They do not fit.
        """
        self._lease = EnsembleLease(ensemble, owned)
        try:
            Context().run(ensemble.check, params)
        except BaseException:
            self.close()
            raise

    # ---- closing

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._lease.closed

    def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Frees the models, unless a copy of this model, another model or the caller's own ensemble uses them.

        Copies share their ensemble, which is closed with the last of them; requests that still run then end with an
        `EngineClosedError`, as do all later calls of this model. An ensemble that was passed in stays open. May be
        called twice; ``with`` and ``async with`` call it at their end.

        Args:
            timeout: As in `gac_core.Ensemble.close`.
        """
        self._lease.close(timeout)

    async def aclose(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """`close` without blocking the event loop."""
        await asyncio.to_thread(self.close, timeout)

    def __enter__(self) -> Self:
        # Raises if it is closed.
        _ = self._ensemble
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    async def __aenter__(self) -> Self:
        return self.__enter__()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    # ---- changes and copies

    def __setattr__(self, name: str, value: Any) -> None:
        # Fields are set freely until the ensemble is loaded.
        if (getattr(self, "__pydantic_private__", None) or {}).get("_lease") is not None:
            self._check_changes({name: value})
            value = self._as_kept({name: value})[name]
        super().__setattr__(name, value)

    def _as_kept(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        """Returns checked values of fields; those of parameters as constructors keep them, such as lists for tuples."""
        return {
            name: self._converted(name, value) if name in SAMPLING_FIELDS else value for name, value in changes.items()
        }

    def _converted(self, name: str, value: Any) -> Any:
        """Returns the value of a field as its annotation has it."""
        raise NotImplementedError

    def _check_changes(self, changes: Mapping[str, Any]) -> None:
        """Checks new values of fields.

        Raises:
            ConfigError: One of the fields has no effect once the ensemble is loaded.
            RequestError: A default of a request's parameters is wrong.
        """
        fixed = sorted(FIXED_FIELDS & set(changes))
        if fixed:
            raise ConfigError(
                f"{', '.join(fixed)} cannot be changed once the members are loaded; make a new one: "
                f"{type(self).__name__}(models=[...], ...)"
            )
        sampling = {name: value for name, value in changes.items() if name in SAMPLING_FIELDS}
        if sampling and not self.closed:
            # Contexts such as `use_threshold` end before the model does.
            outside = Context()
            params = outside.run(self._sampling_params, sampling)
            check_defaults(self._lease.config, params)
            outside.run(self._ensemble.check, params)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a copy on the same loaded ensemble, with some fields replaced.

        Args:
            update: New values by field. Default none.
            deep: Whether mutable values are copied too; the ensemble is always shared. Default False.

        Raises:
            UnknownArgumentError: Unknown field.
            ConfigError: A field has no effect once the ensemble is loaded.
            RequestError: A value is wrong.
        """
        known = set(type(self).model_fields)  # type: ignore[attr-defined]
        if unknown := set(update or ()) - known:
            raise UnknownArgumentError(unknown, known)
        self._check_changes(update or {})
        copied: Self = super().model_copy(update=self._as_kept(update or {}), deep=deep)  # type: ignore[misc]
        return copied

    def __copy__(self) -> Self:
        copied: Self = super().__copy__()  # type: ignore[misc]
        copied._lease = self._lease.share()
        return copied

    def with_threshold(self: _W, threshold: Threshold) -> _W:
        """Returns a copy with another threshold on the same loaded ensemble.

        For chains, query engines and agents, which pass no arguments on. `gac_core.use_threshold` and a call's own
        argument take precedence.

        Args:
            threshold: As `gac_core.SamplingParams.threshold`.

        Raises:
            RequestError: It is out of range.
        """
        return self.model_copy(update={"threshold": threshold})

    def with_gate(self: _W, gate: str | None) -> _W:
        """Returns a copy with another gate on the same loaded ensemble, as `with_threshold` does.

        Args:
            gate: Name of a member; None: the ensemble's own gate.

        Raises:
            RequestError: The gate is not a member.
        """
        return self.model_copy(update={"gate": gate})

    def _sampling_params(self, overrides: Mapping[str, Any], **defaults: Any) -> SamplingParams:
        """Returns the parameters of one call.

        Args:
            overrides: The call's arguments.
            **defaults: Values in place of the fields'.

        Raises:
            UnknownArgumentError: Unknown keyword argument.
            RequestError: A value is out of its range.
        """
        fields = {name: getattr(self, name) for name in SAMPLING_FIELDS if hasattr(self, name)}
        return request_params({**fields, **defaults}, overrides)

    def _context(self: _Wrapper) -> int | None:
        """Returns the smallest context of the members that take part in a call, in tokens; None: no limit."""
        return self._ensemble.context_for(self._sampling_params({}))
