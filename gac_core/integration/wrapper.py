"""`EnsembleModel`: methods that models of all frameworks have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, TypeVar

from gac_core.ensemble import Ensemble
from gac_core.integration.arguments import request_params
from gac_core.integration.fields import SAMPLING_FIELDS
from gac_core.sampling import SamplingParams
from gac_core.settings import Threshold


class _Wrapper(Protocol):
    """What `EnsembleModel` needs of the class that it is mixed into, a pydantic model."""

    _ensemble: Ensemble

    def model_copy(self: _W, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> _W: ...

    def _sampling_params(self, overrides: Mapping[str, Any], **defaults: Any) -> SamplingParams: ...


_W = TypeVar("_W", bound=_Wrapper)


class EnsembleModel:
    """Methods of a framework's model.

    Mixed into a pydantic class that has a field for each parameter of a request (`SAMPLING_FIELDS`; one that it lacks
    has its default) and the loaded ensemble as its private attribute ``_ensemble``.
    """

    @property
    def model_name(self: _Wrapper) -> str:
        """The members' names, joined by ``+``."""
        return "+".join(self._ensemble.names)

    def with_threshold(self: _W, threshold: Threshold) -> _W:
        """Returns a copy with another threshold on the same loaded ensemble.

        For chains, query engines and agents, which pass no arguments on. `gac_core.use_threshold` and a call's own
        argument take precedence.

        Args:
            threshold: As `gac_core.SamplingParams.threshold`.

        Raises:
            RequestError: It is out of range.
        """
        SamplingParams(threshold=threshold)
        return self.model_copy(update={"threshold": threshold})

    def with_gate(self: _W, gate: str | None) -> _W:
        """Returns a copy with another gate on the same loaded ensemble, as `with_threshold` does.

        Args:
            gate: Name of a member; None: the ensemble's own gate.

        Raises:
            RequestError: The gate is not a member.
        """
        # Checked at any threshold, which may be set later.
        self._ensemble.check(self._sampling_params({"gate": gate, "threshold": 0.0}))
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
