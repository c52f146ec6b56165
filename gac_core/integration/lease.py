"""`EnsembleLease`: a framework model's use of an ensemble that it may share with copies of itself."""

from __future__ import annotations

from typing import Any
from weakref import WeakSet

from gac_core.config import EnsembleConfig
from gac_core.engine.session import CLOSE_TIMEOUT
from gac_core.ensemble import Ensemble
from gac_core.errors import EngineClosedError


class EnsembleLease:
    """One model's use of an ensemble. Thread-safe.

    Copies of a model share its ensemble by a lease each. The ensemble is closed with the last of them, but only if the
    models have loaded it themselves. A lease that is garbage no longer counts.

    Args:
        ensemble: The ensemble.
        owned: Whether the ensemble is closed with its last lease. Default True.
    """

    def __init__(self, ensemble: Ensemble, owned: bool = True) -> None:
        self.config: EnsembleConfig = ensemble.config
        self._ensemble: Ensemble | None = ensemble
        self._owned = owned
        self._holders: WeakSet[EnsembleLease] = WeakSet([self])

    @property
    def closed(self) -> bool:
        """Whether `close` was called."""
        return self._ensemble is None

    @property
    def ensemble(self) -> Ensemble:
        """The ensemble.

        Raises:
            EngineClosedError: This lease is closed.
        """
        if (ensemble := self._ensemble) is None:
            raise EngineClosedError("this model is closed; make a new one")
        return ensemble

    def share(self) -> EnsembleLease:
        """Returns another lease on the same ensemble; closed if this one is."""
        other = EnsembleLease.__new__(EnsembleLease)
        other.config, other._owned, other._holders = self.config, self._owned, self._holders
        other._ensemble = self._ensemble
        # A closed lease holds nothing; it would keep the last open one from closing the ensemble.
        if other._ensemble is not None:
            other._holders.add(other)
        return other

    def __deepcopy__(self, memo: dict[int, Any]) -> EnsembleLease:
        return self.share()

    def close(self, timeout: float | None = CLOSE_TIMEOUT) -> None:
        """Ends this use of the ensemble; the last one closes it, as `Ensemble.close` does. May be called twice."""
        ensemble, self._ensemble = self._ensemble, None
        self._holders.discard(self)
        if ensemble is not None and self._owned and not self._holders:
            ensemble.close(timeout)
