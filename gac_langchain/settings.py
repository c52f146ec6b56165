"""What both LangChain models share: which ensemble they hold and how a call's arguments become `SamplingParams`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self

from langchain_core.callbacks import BaseRunManager
from langchain_core.runnables import RunnableConfig
from langchain_core.runnables.config import ensure_config, get_config_list
from pydantic import BaseModel, ConfigDict, Field, PrivateAttr, ValidationError

from gac_core import (
    ENSEMBLE_FIELDS,
    SAMPLING_FIELDS,
    ConfigError,
    Ensemble,
    EnsembleConfig,
    SamplingParams,
    UnknownArgumentError,
    ambient_gate,
    ambient_threshold,
    open_ensemble,
    quote,
    request_params,
)

logger = logging.getLogger(__name__)

CALL_NAMES = SAMPLING_FIELDS
"""The names of a request's parameters, each a field and an argument of every call."""
CONFIGURABLE = {"gac_threshold": "threshold", "gac_gate": "gate", "gac_timeout": "timeout"}
"""The keys of ``config["configurable"]`` that set a parameter of every model in a run, and their parameters."""

# What LangChain's models of remote services take, and chains that build any model may pass: without meaning here.
_OF_SERVICES = frozenset({"api_key", "base_url", "max_retries", "stream_usage"})
# Where and how a member is computed, not what it says.
_WITHOUT_EFFECT = ("device", "device_map", "trust_remote_code", "compile")


def request_id_of(kwargs: Mapping[str, Any], run_manager: BaseRunManager | None) -> str | None:
    """Returns the id of a call's request: the call's own, else that of its run; None without either."""
    given: str | None = kwargs.get("request_id")
    return given if given is not None or run_manager is None else str(run_manager.run_id)


def _restored(cls: type[Any], config: EnsembleConfig, fields: dict[str, Any]) -> Any:
    return cls(config=config, **fields)


def _own_error(error: ValidationError) -> ConfigError | None:
    """The first of pydantic's errors that is on a field of `EnsembleSettings`, with its field and value."""
    for each in error.errors(include_url=False):
        name = str(each["loc"][0]) if each["loc"] else ""
        if name in EnsembleSettings.model_fields:
            return ConfigError(f"{name} must be another value: {each['msg']}, not {quote(each['input'])}")
    return None


class EnsembleSettings(BaseModel):
    """Fields of a model that answers through an ensemble.

    Give ``ensemble`` (a loaded `gac_core.Ensemble`, shared with whoever else holds it), or ``models``, or neither: then
    the environment variable ``GAC_CONFIG`` names a YAML configuration. Copies of a model share its ensemble. All other
    fields are defaults that each call may override by the same name. A name that is not known is refused, but for those
    that only remote services have (``api_key``, ``base_url``, ...), which mean nothing here and are logged.
    """

    model_config = ConfigDict(arbitrary_types_allowed=True)

    models: list[Any] | None = None
    """Names on a model hub, folders, mappings or `gac_core.MemberConfig`."""
    ensemble: Any = Field(default=None, exclude=True)
    """A loaded ensemble, in place of ``models``."""
    weights: dict[str, float] | list[float] | None = None
    """One per member, or by name; beside ``ensemble`` or ``config`` those of this model's calls."""
    dtype: str | None = None
    device: str | None = None
    device_map: Any = None
    quantization: str | None = None
    """``"8bit"`` or ``"4bit"``; see `gac_core.MemberConfig`."""
    commit: str | None = None
    """``"canonical"`` or ``"context-free"``; see `gac_core.EnsembleConfig`. None: the library's default."""
    alignment: str | None = None
    """``"token"``, the only rule; see `gac_core.EnsembleConfig`. None: the library's default."""
    combine: str | None = None
    """``"arithmetic"`` or ``"geometric"``; see `gac_core.EnsembleConfig`. None: the library's default."""
    gate_rule: str | None = None
    """``"confidence"`` or ``"margin"``; see `gac_core.EnsembleConfig`. None: the library's default."""
    max_batch_size: int | None = None
    """Requests that run at once; this and the next six as in `gac_core.EnsembleConfig`. None: its default."""
    max_queue: int | None = None
    prefill_tokens: int | None = None
    prefill_seconds: float | None = None
    cache_gib: float | None = None
    deterministic: bool | None = None
    stuck_after: float | None = None
    gate: str | None = None
    threshold: float | Literal["default"] | None = "default"
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: list[str] | None = None
    logprobs: int | None = None
    grammar: Any = None
    drafts: bool = True
    parse_special: bool = False
    """Whether text of a prompt that spells control tokens becomes control tokens; see `gac_core.SamplingParams`."""
    token_stats: bool = False
    """Whether metadata give confidence, agreement and divergence of each token; see `gac_core.TokenStats`."""
    timeout: float | None = None
    """Seconds that a call may take; see `gac_core.SamplingParams`."""
    streaming: bool = False
    """Whether ``invoke`` tells callbacks every token as ``stream`` does."""
    _loaded: Ensemble = PrivateAttr()

    def __init__(self, *, config: EnsembleConfig | Mapping[str, Any] | str | Path | None = None, **fields: Any) -> None:
        """Checks all fields, then loads the ensemble.

        Args:
            config: A configuration, a mapping of its fields, or the path of a YAML file, in place of ``models``.
            **fields: The fields.

        Raises:
            RequestError: A default of a request's parameters is wrong.
            UnknownArgumentError: There is no such field.
            ConfigError: Another field of this class is wrong.
            ModelLoadError: A model cannot be loaded.
            ValidationError: A field of LangChain's own is wrong (pydantic's error).
        """
        known = type(self).model_fields
        if unknown := set(fields) - set(known) - _OF_SERVICES:
            raise UnknownArgumentError(unknown, known)
        if ignored := sorted(_OF_SERVICES & set(fields)):
            logger.warning("%s means nothing to models in this process and is ignored", ", ".join(ignored))
        defaults = {name: fields.get(name, known[name].default) for name in SAMPLING_FIELDS}
        # The threshold is checked even where `use_threshold` is in force.
        params = request_params(defaults, {"threshold": defaults["threshold"]})
        if fields.get("stop") is not None:
            fields["stop"] = list(params.stop)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise _own_error(error) or error from error
        loading = {name: fields.get(name) for name in ENSEMBLE_FIELDS}
        self._loaded = open_ensemble(self.models, self.ensemble, config, params, **loading)
        self._loaded.check(params)

    def __reduce__(self) -> tuple[Any, ...]:
        # The settings, by which another process loads the members anew.
        fields = {
            name: getattr(self, name)
            for name in self.model_fields_set - {"models", "ensemble", *(set(ENSEMBLE_FIELDS) - SAMPLING_FIELDS)}
        }
        return _restored, (type(self), self._loaded.config, fields)

    @classmethod
    def from_config(cls, path: str | Path, **fields: Any) -> Self:
        """Makes a model of the ensemble that a YAML file describes.

        Args:
            path: The file; see `gac_core.EnsembleConfig`.
            **fields: Other fields of the model.

        Raises:
            ConfigError: The file cannot be read or holds wrong values.
        """
        return cls(config=path, **fields)

    def with_threshold(self, threshold: float | Literal["default"] | None) -> Self:
        """Returns a copy with another threshold, on the same loaded ensemble.

        Raises:
            RequestError: The threshold is out of range.
        """
        copy = self.model_copy(update={"threshold": threshold})
        copy._params(None, {})
        return copy

    def with_gate(self, gate: str | None) -> Self:
        """Returns a copy with another gate, on the same loaded ensemble; None: the ensemble's own.

        Raises:
            RequestError: The gate is not a member.
        """
        # At any threshold: it may be set later.
        self._loaded.check(self._params(None, {"gate": gate, "threshold": 0.0}))
        return self.model_copy(update={"gate": gate})

    def get_token_ids(self, text: str) -> list[int]:
        """Returns a text in the gate's ids, or as ``custom_get_token_ids`` has them."""
        own: Callable[[str], list[int]] | None = getattr(self, "custom_get_token_ids", None)
        return self._loaded.encode(text) if own is None else own(text)

    @property
    def model_name(self) -> str:
        """The members' names."""
        return "+".join(self._loaded.names)

    def _configured(self, config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """A call's arguments with those of its run's configuration (`CONFIGURABLE`), unless the call gives them.

        A call that asks one member alone (``model="NAME"``) takes neither threshold nor gate.
        """
        configurable = ensure_config(config).get("configurable", {})
        given = {name: configurable[key] for key, name in CONFIGURABLE.items() if key in configurable}
        if kwargs.get("model") not in (None, self.model_name):
            given = {name: value for name, value in given.items() if name not in ("threshold", "gate")}
        return {**given, **kwargs}

    def _side_by_side(self, config: RunnableConfig | list[RunnableConfig] | None, count: int) -> list[RunnableConfig]:
        """Configurations of the runs of a batch, which use all of the engine's places unless they say otherwise."""
        places = min(count, self._loaded.config.max_batch_size)
        # LangChain's own default is a few threads more than the machine has cores.
        return [
            {**each, "max_concurrency": each.get("max_concurrency") or places}
            for each in get_config_list(config, count)
        ]

    def _params(self, stop: list[str] | None, overrides: Mapping[str, Any]) -> SamplingParams:
        """The parameters of one call: the fields, then the call's arguments, refused by name if unknown."""
        defaults = {name: getattr(self, name) for name in SAMPLING_FIELDS}
        return request_params(defaults, overrides if stop is None else {"stop": stop, **overrides})

    def _identity(self) -> dict[str, Any]:
        """Everything that decides the text, for caches."""
        config = self._loaded.config
        return {
            "members": [
                {name: value for name, value in asdict(member).items() if name not in _WITHOUT_EFFECT}
                for member in config.members
            ],
            "ensemble_gate": self._loaded.gate,
            "ensemble_threshold": config.threshold,
            "commit": config.commit,
            "ensemble_alignment": config.alignment,
            "ensemble_combine": config.combine,
            "ensemble_gate_rule": config.gate_rule,
            "deterministic": config.deterministic,
            # Drafts change the cost, but for rounding never the text, and a timeout only whether there is one.
            **{name: getattr(self, name) for name in sorted(SAMPLING_FIELDS - {"drafts", "timeout"})},
            "threshold": ambient_threshold(self.threshold),
            "gate": ambient_gate(self.gate),
        }
