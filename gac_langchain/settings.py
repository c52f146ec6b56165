"""`EnsembleSettings`: what both LangChain models share: their ensemble, changes, pickles and cache keys."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from copy import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, cast

from langchain_core.callbacks import BaseRunManager
from langchain_core.language_models import LanguageModelInput
from langchain_core.runnables import Runnable, RunnableConfig, RunnableSerializable
from langchain_core.runnables.config import ensure_config, get_config_list
from pydantic import PrivateAttr, ValidationError

from gac_core import (
    CONVERSATION_FIELDS,
    ENSEMBLE_FIELDS,
    FIXED_FIELDS,
    LOADING_FIELDS,
    SAMPLING_FIELDS,
    ConfigError,
    EnsembleConfig,
    EnsembleLease,
    EnsembleModel,
    Prompt,
    SamplingParams,
    UnknownArgumentError,
    WarmReport,
    ambient_combine,
    ambient_gate,
    ambient_threshold,
    ambient_weights,
    member_weights,
    open_ensemble,
    own_params,
)
from gac_langchain.documents import DOCUMENT_OPTIONS, to_documents
from gac_langchain.fields import EnsembleFields, converted, type_error

logger = logging.getLogger(__name__)

# The parameters that decide which members take part and how; `model="NAME"` sets them itself.
_OF_ONE_MEMBER = frozenset({"threshold", "gate", "weights", "combine", "combine_documents", "alignment", "gate_rule"})
CONFIGURABLE = {f"gac_{name}": name for name in sorted(_OF_ONE_MEMBER | {"timeout"})}
"""The keys of ``config["configurable"]`` that set a parameter of every model in a run, and their parameters. Other keys
that begin with ``gac_`` are errors."""

# Arguments of clients for remote services, which code that builds any chat model may pass; they are ignored.
_OF_SERVICES = frozenset({"api_key", "base_url", "max_retries", "stream_usage"})
# Settings of a member that do not change its text.
_WITHOUT_EFFECT = ("device", "device_map", "trust_remote_code", "compile")


def request_id_of(kwargs: Mapping[str, Any], run_manager: BaseRunManager | None) -> str | None:
    """Returns the id of a call's request: the call's own, else that of its run; None without either."""
    given: str | None = kwargs.get("request_id")
    return given if given is not None or run_manager is None else str(run_manager.run_id)


def _restored(cls: type[Any], config: EnsembleConfig, fields: dict[str, Any]) -> Any:
    return cls(config=config, **fields)


class EnsembleSettings(EnsembleModel, EnsembleFields):
    """Fields of a LangChain model that answers through an ensemble.

    Give ``ensemble`` (a loaded `gac_core.Ensemble`, which may be shared), ``models`` or ``config``. Without any of them
    the environment variable ``GAC_CONFIG`` names a YAML configuration. Copies of a model share its ensemble.

    Fields that are parameters of `gac_core.SamplingParams` are defaults, which each call may override by the same name.
    ``weights``, ``alignment``, ``combine``, ``combine_documents`` and ``gate_rule`` also configure the ensemble that is
    loaded from ``models``; beside ``ensemble`` and ``config`` they are defaults of calls only. All other settings of
    the ensemble go with ``models``. Unknown fields are errors, except ``api_key``, ``base_url``, ``max_retries`` and
    ``stream_usage``, which are ignored with a warning.
    """

    _lease: EnsembleLease = PrivateAttr()

    def __init__(self, *, config: EnsembleConfig | Mapping[str, Any] | str | Path | None = None, **fields: Any) -> None:
        """Checks all fields, then loads the ensemble.

        Args:
            config: A configuration, a mapping of its fields, or the path of a YAML file, in place of ``models``.
            **fields: The fields.

        Raises:
            RequestError: A default of a request's parameters is wrong.
            UnknownArgumentError: Unknown field.
            ConfigError: Another field is wrong.
            ModelLoadError: A model cannot be loaded.
        """
        known = type(self).model_fields
        missing = ", ".join(sorted(SAMPLING_FIELDS - set(known)))
        assert not missing, (
            f"EnsembleSettings lacks {missing} of SamplingParams; add a field in gac_langchain/settings.py"
        )
        if unknown := set(fields) - set(known) - _OF_SERVICES:
            raise UnknownArgumentError(unknown, set(known) | {"config"})
        if ignored := sorted(_OF_SERVICES & set(fields)):
            logger.warning("%s: no effect on local models, ignored", ", ".join(ignored))
        defaults = {name: fields.get(name, known[name].default) for name in SAMPLING_FIELDS}
        params = own_params(defaults)
        if fields.get("stop") is not None:
            fields["stop"] = list(params.stop)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise type_error(type(self), error) from error
        loading = {name: fields.get(name) for name in ENSEMBLE_FIELDS}
        opened = open_ensemble(self.models, self.ensemble, config, params, **loading)
        self._hold(opened, self.ensemble is None, params)

    def __reduce__(self) -> tuple[Any, ...]:
        # Settings only: the process that unpickles loads the members again.
        fields = {name: getattr(self, name) for name in self.model_fields_set - {"models", "ensemble"} - LOADING_FIELDS}
        return _restored, (type(self), self._lease.config, fields)

    def _check_changes(self, changes: Mapping[str, Any]) -> None:
        super()._check_changes(changes)
        # The values of parameters are checked already.
        for name in set(changes) & set(type(self).model_fields) - SAMPLING_FIELDS:
            converted(type(self), name, changes[name], strict=True)

    def _converted(self, name: str, value: Any) -> Any:
        return converted(type(self), name, value)

    def bind(self, **kwargs: Any) -> Any:
        """Returns the model with arguments of its calls.

        Raises:
            ConfigError: One of them has no effect once the ensemble is loaded.
            RequestError: The value of a parameter or a field of conversations is wrong.
        """
        checked = SAMPLING_FIELDS | FIXED_FIELDS | set(CONVERSATION_FIELDS)
        arguments = {name: value for name, value in kwargs.items() if name in checked}
        self._check_changes(arguments)
        return super().bind(**kwargs)  # type: ignore[misc]

    def with_config(self, config: RunnableConfig | None = None, **kwargs: Any) -> Runnable[LanguageModelInput, Any]:
        """Returns the model with a run configuration.

        Raises:
            UnknownArgumentError: It has a key that begins with ``gac_`` and is not one of `CONFIGURABLE`.
            RequestError: The value of such a key is wrong.
        """
        own = cast(RunnableConfig, {**(config or {}), **kwargs})
        self._check_changes(self._configured(own, {}))
        return super().with_config(config, **kwargs)  # type: ignore[misc, no-any-return]

    def configurable_fields(self, **kwargs: Any) -> RunnableSerializable[LanguageModelInput, Any]:
        """Returns the model with fields that a run configuration may set.

        Raises:
            ConfigError: A field has no effect once the ensemble is loaded.
        """
        if fixed := sorted(FIXED_FIELDS & set(kwargs)):
            raise ConfigError(
                f"{', '.join(fixed)} cannot be changed once the members are loaded; make a model for each value, and "
                "choose among them with configurable_alternatives"
            )
        # LangChain makes a new model of the fields for each run: on this ensemble, not on another one.
        model = copy(self)
        model.__dict__.update(dict.fromkeys(FIXED_FIELDS & set(type(self).model_fields)), ensemble=self._ensemble)
        model._lease = self._lease
        return super(EnsembleSettings, model).configurable_fields(**kwargs)  # type: ignore[misc, no-any-return]

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

    def get_token_ids(self, text: str) -> list[int]:
        """Returns a text's token ids in the gate's tokenizer, or those of ``custom_get_token_ids`` if it is set."""
        own: Callable[[str], list[int]] | None = getattr(self, "custom_get_token_ids", None)
        return self._ensemble.encode(text) if own is None else own(text)

    def warm(
        self, prompt: LanguageModelInput, documents: Sequence[Any], *, pin: bool = True, **kwargs: Any
    ) -> WarmReport:
        """Computes the KV cache of documents in a prompt, so that the first answer from them comes sooner.

        Args:
            prompt: The prompt with the place for a document, in any form that ``invoke`` takes.
            documents: The documents, as ``documents`` of ``invoke``.
            pin: Whether they stay in the cache; False unpins documents that are in it. Default True.
            **kwargs: The arguments of the calls that follow, such as ``place`` and ``tools``.

        Raises:
            RequestError: An argument is wrong.
        """
        return self._ensemble.warm(**self._warmed(prompt, documents, kwargs), pin=pin)

    async def awarm(
        self, prompt: LanguageModelInput, documents: Sequence[Any], *, pin: bool = True, **kwargs: Any
    ) -> WarmReport:
        """`warm` for event loops."""
        return await self._ensemble.awarm(**self._warmed(prompt, documents, kwargs), pin=pin)

    def _warmed(
        self, prompt: LanguageModelInput, documents: Sequence[Any], kwargs: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Returns the arguments of `gac_core.Ensemble.warm`; arguments as in `warm`."""
        found = to_documents(documents, scored=False)
        others = {name: value for name, value in kwargs.items() if name not in DOCUMENT_OPTIONS}
        asked, params = self._prompted(prompt, others)
        named = {"place": kwargs["place"]} if kwargs.get("place") is not None else {}
        return {"prompt": asked, "documents": [document for document, _ in found.values()], "params": params, **named}

    def _prompted(self, prompt: LanguageModelInput, kwargs: Mapping[str, Any]) -> tuple[Prompt, SamplingParams]:
        """Returns the prompt and the parameters of a call without documents."""
        raise NotImplementedError

    def _configured(self, config: RunnableConfig | None, kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a call's arguments and those of its run's configuration (`CONFIGURABLE`) that it does not give.

        A call to one member alone (``model="NAME"``) takes only the timeout of the configuration.

        Raises:
            UnknownArgumentError: The configuration has another key that begins with ``gac_``.
        """
        configurable = ensure_config(config).get("configurable", {})
        unknown = [key for key in configurable if str(key).startswith("gac_") and key not in CONFIGURABLE]
        if unknown:
            remedy = "set other parameters per call, with bind, or as fields of the model"
            raise UnknownArgumentError(unknown, CONFIGURABLE, "key of the run configuration", remedy)
        given = {name: configurable[key] for key, name in CONFIGURABLE.items() if key in configurable}
        if kwargs.get("model") not in (None, self.model_name):
            given = {name: value for name, value in given.items() if name not in _OF_ONE_MEMBER}
        return {**given, **kwargs}

    def _concurrent(self, config: RunnableConfig | list[RunnableConfig] | None, count: int) -> list[RunnableConfig]:
        """Returns the configurations of a batch's runs, with the engine's batch size as their ``max_concurrency``."""
        places = min(count, self._ensemble.config.max_batch_size)
        # LangChain's default is a few threads more than the machine has cores.
        return [
            {**each, "max_concurrency": each.get("max_concurrency") or places}
            for each in get_config_list(config, count)
        ]

    def _identity(self) -> dict[str, Any]:
        """Returns everything that the text depends on, as a cache key."""
        config = self._ensemble.config
        return {
            "members": [
                {name: value for name, value in asdict(member).items() if name not in _WITHOUT_EFFECT}
                for member in config.members
            ],
            **{
                f"ensemble_{name}": getattr(config, name)
                for name in ("threshold", "alignment", "combine", "combine_documents", "gate_rule")
            },
            "ensemble_gate": self._ensemble.gate,
            "ensemble_weights": "perplexity"
            if config.weights == "perplexity"
            else member_weights(config, SamplingParams()),
            "calibrated_weights": config.calibration and member_weights(config, SamplingParams(weights="auto")),
            "commit": config.commit,
            "deterministic": config.deterministic,
            # Drafts change the cost and, apart from rounding, not the text; a timeout only whether there is one.
            **{name: getattr(self, name) for name in sorted(SAMPLING_FIELDS - {"drafts", "timeout"})},
            "threshold": ambient_threshold(self.threshold),
            "gate": ambient_gate(self.gate),
            "weights": ambient_weights(self.weights),
            "combine": ambient_combine(self.combine),
        }
