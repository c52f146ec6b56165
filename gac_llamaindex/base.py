"""`EnsembleLLM`: settings, ensemble, copies and pickles of `GaCLLM`."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from contextvars import Context
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import LLMMetadata
from llama_index.core.bridge.pydantic import PrivateAttr, ValidationError
from llama_index.core.llms.llm import default_completion_to_prompt

from gac_core import (
    ENSEMBLE_FIELDS,
    LOADING_FIELDS,
    SAMPLING_FIELDS,
    ChatTemplateError,
    ConfigError,
    Ensemble,
    EnsembleConfig,
    EnsembleLease,
    EnsembleModel,
    MemberConfig,
    SamplingParams,
    UnknownArgumentError,
    ambient_gate,
    ambient_threshold,
    check_tool_choice,
    field_error,
    member_weights,
    open_ensemble,
    own_params,
    with_top_logprobs,
)
from gac_llamaindex.fields import EnsembleFields, read_bias, read_grammar

# LlamaIndex needs a number also where no member has a limit.
_NO_LIMIT = 1_000_000
# Fields that LlamaIndex does not serialize but that change the answers.
_PICKLED = ("messages_to_prompt", "completion_to_prompt", "output_parser", "query_wrapper_prompt")
_TEMPLATE_REMEDIES = (
    'set MemberConfig.chat_template (a Jinja template, or "plain" for a base model), or give GaCLLM a '
    "messages_to_prompt function, by which every member reads a conversation as one text"
)
_logger = logging.getLogger(__name__)


class EnsembleLLM(EnsembleModel, EnsembleFields):
    """The settings of `GaCLLM` and its ensemble; see there."""

    _lease: EnsembleLease = PrivateAttr()

    def __init__(
        self,
        models: Sequence[Any] | None = None,
        ensemble: Ensemble | None = None,
        config: EnsembleConfig | Mapping[str, Any] | str | Path | None = None,
        **fields: Any,
    ) -> None:
        known = type(self).model_fields
        check_tool_choice(fields.get("tool_choice"))
        fields = with_top_logprobs(fields, fields.pop("top_logprobs", None))
        if set(fields) - set(known):
            raise UnknownArgumentError(set(fields) - set(known), set(known) | {"ensemble"})
        for name, read in (("logit_bias", read_bias), ("grammar", read_grammar)):
            if name in fields:
                fields[name] = read(fields[name])
        params = _default_params({name: fields.get(name, known[name].default) for name in SAMPLING_FIELDS & set(known)})
        if fields.get("stop") is not None:
            fields["stop"] = list(params.stop)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise self._field_error(error) from error
        # As given: pydantic would convert strings and booleans to numbers.
        loading = {name: fields.get(name) for name in ENSEMBLE_FIELDS}
        opened = open_ensemble(models, ensemble, config, params, **loading)
        if models is None:
            self.config = asdict(opened.config)
            for name in LOADING_FIELDS:
                setattr(self, name, None)
        else:
            self.models = [_as_json(model) for model in models]
        self._hold(opened, ensemble is None, params)
        Context().run(self._warn_of_missing_templates)

    @classmethod
    def from_config(cls, config: EnsembleConfig | Mapping[str, Any] | str | Path, **fields: Any) -> Self:
        """Makes a model of a configuration or a YAML file; models of equal configurations share one loaded ensemble.

        Args:
            config: The configuration, a mapping of its fields, or the path of a YAML file.
            **fields: As in the class.

        Raises:
            ConfigError: A setting is wrong.
            ModelLoadError: A model cannot be loaded.
        """
        return cls(config=config, **fields)

    @classmethod
    def class_name(cls) -> str:
        """Name used by LlamaIndex."""
        return "GaCLLM"

    @property
    def ensemble(self) -> Ensemble:
        """The loaded ensemble, shared with copies of this model."""
        return self._ensemble

    @property
    def metadata(self) -> LLMMetadata:
        """The smallest context of the members; chat and tools if every participating member has a chat template."""
        chat = not self._without_template()
        return LLMMetadata(
            context_window=self._context() or _NO_LIMIT,
            num_output=self.max_tokens,
            is_chat_model=chat,
            is_function_calling_model=chat and not self._has_own_prompts,
            model_name=self.model_name,
        )

    def encode(self, text: str) -> list[int]:
        """Returns a text's token ids in the gate's tokenizer, for ``Settings.tokenizer`` and token counters."""
        return self._ensemble.encode(text)

    def to_payload(self) -> dict[str, Any]:
        """Returns what start events report of this model: its metadata, members, weights, gate and threshold."""
        config = self._ensemble.config
        threshold = ambient_threshold(self.threshold)
        params = self._sampling_params({})
        source = config.weights if params.weights is None else params.weights
        return {
            **super().to_payload(),
            "members": list(config.names),
            "weights": source if source == "perplexity" else member_weights(config, params),
            "gate": ambient_gate(self.gate) or self._ensemble.gate,
            "threshold": config.threshold if threshold == "default" else threshold,
        }

    # ---- changes and pickles

    def _check_changes(self, changes: Mapping[str, Any]) -> None:
        super()._check_changes(changes)
        for name in EnsembleFields.own() & set(changes):
            self._converted(name, changes[name])
        check_tool_choice(changes.get("tool_choice"))

    def _converted(self, name: str, value: Any) -> Any:
        unset = type(self).model_construct()
        try:
            self.__pydantic_validator__.validate_assignment(unset, name, value)
        except ValidationError as error:
            raise self._field_error(error) from error
        return getattr(unset, name)

    @classmethod
    def _field_error(cls, error: ValidationError) -> Exception:
        described = {name: field.description for name, field in cls.model_fields.items()}
        return field_error(error.errors(include_url=False), described) or error

    def __reduce__(self) -> tuple[Any, ...]:
        # Settings, and functions by name: the process that unpickles loads the members again. Callbacks and rate
        # limiters are left out.
        return _restored, (type(self), self.to_dict(), self._pickled())

    def _pickled(self) -> dict[str, Any]:
        """Returns the functions that were given to the constructor.

        Raises:
            ConfigError: One cannot be pickled.
        """
        given: dict[str, Any] = {}
        for name in _PICKLED:
            value = getattr(self, name)
            if value is None or value in (generic_messages_to_prompt, default_completion_to_prompt):
                continue
            try:
                pickle.dumps(value)
            except Exception as error:
                # The type depends on the value.
                raise ConfigError(
                    f"{name} cannot be pickled: {error}; give a function or class that is defined at the top level of "
                    "a module, not a lambda or a function within another"
                ) from error
            given[name] = value
        return given

    # ---- chat templates

    @property
    def _has_own_prompts(self) -> bool:
        return self.messages_to_prompt is not generic_messages_to_prompt

    @property
    def _has_own_completions(self) -> bool:
        return self.completion_to_prompt is not default_completion_to_prompt

    def _without_template(self) -> list[str]:
        """Returns the members without a chat template that take part in a call with the fields' values."""
        return self._ensemble.without_chat_template(self._sampling_params({}))

    def _require_templates(self, params: SamplingParams) -> None:
        missing = self._ensemble.without_chat_template(params)
        if missing:
            raise ChatTemplateError(missing[0], f"it has no chat template; {_TEMPLATE_REMEDIES}")

    def _warn_of_missing_templates(self) -> None:
        """Logs which members lack the chat template that chat and tools need, where others have one."""
        missing = self._without_template()
        if not self._has_own_prompts and 0 < len(missing) < len(self._ensemble.names):
            _logger.warning(
                "chat and tools are disabled: member %s has no chat template; %s",
                ", ".join(map(repr, missing)),
                _TEMPLATE_REMEDIES,
            )


def _restored(cls: type[EnsembleLLM], settings: dict[str, Any], functions: dict[str, Any]) -> EnsembleLLM:
    return cls.from_dict(settings, **functions)


def _default_params(fields: Mapping[str, Any]) -> SamplingParams:
    """Returns the parameters of a call by the values that were given to the constructor.

    Raises:
        RequestError: A value is of another type or out of range.
    """
    # None: depends on the prompt of a call.
    defaults = {name: value for name, value in fields.items() if (name, value) != ("parse_special", None)}
    return own_params(defaults)


def _as_json(model: Any) -> Any:
    """Returns an entry of ``models`` as JSON can hold it."""
    if isinstance(model, MemberConfig):
        return asdict(model)
    return str(model) if isinstance(model, Path) else model
