"""`Catalog`: the models that the server offers: ensembles, and single members of them."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from gac_core.ensemble import Ensemble
from gac_core.errors import ConfigError, listed, quote
from gac_core.sampling import SamplingParams
from gac_core.server.errors import UnknownModelError


@dataclass(frozen=True)
class ServedModel:
    """One model that requests can name.

    Attributes:
        id: Its id: the ensemble's name, or ``ENSEMBLE/MEMBER``.
        ensemble: The ensemble that answers.
        member: The member that answers alone; None: all of them.
        created: When it was loaded, in seconds since 1970.
        fingerprint: Identifies the configuration of the ensemble.
    """

    id: str
    ensemble: Ensemble
    member: str | None = None
    created: int = 0
    fingerprint: str = ""

    def settings(self, documents: bool = False) -> dict[str, Any]:
        """Returns the parameters of a request to this model: one member answers as a gate at a threshold of 0.

        Args:
            documents: Whether the request has documents. A gate that decides alone reads one of them; so all others
                have the weight 0 instead. Default False.
        """
        if self.member is None:
            return {}
        if not documents:
            return {"gate": self.member, "threshold": 0.0}
        weights = {name: float(name == self.member) for name in self.ensemble.names}
        return {"gate": self.member, "threshold": None, "weights": weights}

    @property
    def context(self) -> int | None:
        """The longest text of a request with the default parameters, in tokens; None without a limit."""
        return self.ensemble.context_for(SamplingParams(**self.settings()))


@dataclass(frozen=True)
class Catalog:
    """The models that are served.

    Attributes:
        ensembles: The ensembles by name; not closed by the catalog.

    Raises:
        ConfigError: There is no ensemble, or two models have the same id.
    """

    ensembles: Mapping[str, Ensemble]
    _models: dict[str, ServedModel] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        if not self.ensembles:
            raise ConfigError("there is no ensemble to serve; give at least one")
        models: dict[str, ServedModel] = {}
        created = int(time.time())
        for name, ensemble in self.ensembles.items():
            fingerprint = "fp_" + hashlib.sha256(repr(ensemble.config).encode()).hexdigest()[:12]
            for member in (None, *ensemble.names):
                model_id = name if member is None else f"{name}/{member}"
                if model_id in models:
                    raise ConfigError(f"two models have the id {quote(model_id)}; rename an ensemble")
                models[model_id] = ServedModel(model_id, ensemble, member, created, fingerprint)
        object.__setattr__(self, "_models", models)

    def models(self) -> tuple[ServedModel, ...]:
        """Returns all models: each ensemble, followed by its members."""
        return tuple(self._models.values())

    def find(self, model_id: str | None) -> ServedModel:
        """Returns a model by its id; for None the only ensemble.

        Raises:
            UnknownModelError: No model has this id, or there is none and several ensembles are served.
        """
        if model_id is None and len(self.ensembles) == 1:
            [model_id] = self.ensembles
        if model_id is None:
            raise UnknownModelError(f"several ensembles are served; set model to one of {listed(list(self._models))}")
        if model_id not in self._models:
            raise UnknownModelError(f"unknown model {quote(model_id)}; models are: {listed(list(self._models))}")
        return self._models[model_id]
