"""`EnsembleLLM`: settings, ensemble, copies and pickles of `GaCLLM`, and the requests of its calls."""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Self, TypedDict, cast

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, LLMMetadata, MessageRole
from llama_index.core.bridge.pydantic import PrivateAttr, ValidationError
from llama_index.core.llms.llm import CompletionToPromptType, MessagesToPromptType, default_completion_to_prompt

from gac_core import (
    CONVERSATION_ARGUMENTS,
    ENSEMBLE_FIELDS,
    LOADING_FIELDS,
    SAMPLING_FIELDS,
    ChatTemplateError,
    ConfigError,
    Conversation,
    Ensemble,
    EnsembleConfig,
    EnsembleLease,
    EnsembleModel,
    MemberConfig,
    Prompt,
    RequestError,
    SamplingParams,
    UnknownArgumentError,
    ambient_gate,
    ambient_threshold,
    field_error,
    member_weights,
    open_ensemble,
    request_params,
    split_arguments,
)
from gac_llamaindex.fields import EnsembleFields, read_bias
from gac_llamaindex.messages import convert_messages, has_images

_TALK_ARGUMENTS = CONVERSATION_ARGUMENTS | {"tool_format"}
_OTHER_ARGUMENTS = ("request_id",)
# LlamaIndex needs a number also where no member has a limit.
_NO_LIMIT = 1_000_000
# Fields that LlamaIndex does not serialize but that change the answers.
_PICKLED = ("messages_to_prompt", "completion_to_prompt", "output_parser", "query_wrapper_prompt")
_TEMPLATE_REMEDIES = (
    'set MemberConfig.chat_template (a Jinja template, or "plain" for a base model), or give GaCLLM a '
    "messages_to_prompt function, by which every member reads a conversation as one text"
)
_logger = logging.getLogger(__name__)


class Request(TypedDict):
    """The arguments of a call of `gac_core.Ensemble`."""

    prompt: Prompt
    params: SamplingParams
    request_id: str | None


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
        if set(fields) - set(known):
            raise UnknownArgumentError(set(fields) - set(known), set(known) | {"ensemble"})
        if "logit_bias" in fields:
            fields["logit_bias"] = read_bias(fields["logit_bias"])
        params = _default_params({name: fields.get(name, known[name].default) for name in SAMPLING_FIELDS & set(known)})
        if fields.get("stop") is not None:
            fields["stop"] = list(params.stop)
        try:
            super().__init__(**fields)
        except ValidationError as error:
            described = {name: field.description for name, field in known.items()}
            raise field_error(error.errors(include_url=False), described) or error from error
        # As given: pydantic would convert strings and booleans to numbers.
        loading = {name: fields.get(name) for name in ENSEMBLE_FIELDS}
        opened = open_ensemble(models, ensemble, config, params, **loading)
        if models is None:
            self.config = asdict(opened.config)
            for name in LOADING_FIELDS:
                setattr(self, name, None)
        else:
            self.models = [_as_json(model) for model in models]
        self._lease = EnsembleLease(opened, owned=ensemble is None)
        self._ensemble.check(params)
        self._warn_of_missing_templates()

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

    # ---- pickles

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

    # ---- requests

    def _sampling_params(self, overrides: Mapping[str, Any], **defaults: Any) -> SamplingParams:
        # None: decided by whether the user's own functions rendered the prompt.
        params = super()._sampling_params(overrides, **{"parse_special": bool(self.parse_special), **defaults})
        if params.n != 1:
            raise RequestError(
                f"n={params.n}: a response of LlamaIndex has one answer; leave n out, or call "
                "llm.ensemble.generate_choices"
            )
        return params

    def _call_params(self, overrides: Mapping[str, Any], rendered: bool) -> SamplingParams:
        """Returns the parameters of a call.

        Args:
            overrides: The call's arguments.
            rendered: Whether the user's own functions rendered the prompt, which may then hold control tokens.
        """
        special = rendered if self.parse_special is None else self.parse_special
        return self._sampling_params(overrides, parse_special=special)

    def _chat_request(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Request:
        """Returns the request of a conversation."""
        arguments = split_arguments(given, _TALK_ARGUMENTS, _OTHER_ARGUMENTS)
        params = self._call_params(arguments.sampling, rendered=self._has_own_prompts)
        tools = arguments.conversation.get("tools") or ()
        if self._has_own_prompts:
            if tools:
                raise RequestError("messages_to_prompt cannot describe tools; leave it out to use chat templates")
            if has_images(messages):
                raise RequestError("messages_to_prompt cannot show images; leave it out to use chat templates")
            text = cast(MessagesToPromptType, self.messages_to_prompt)(messages)
            return Request(prompt=text, params=params, request_id=arguments.other.get("request_id"))
        self._require_templates(params)
        own = {"tool_format": self.tool_format, "enable_thinking": self.enable_thinking}
        talk = Conversation(convert_messages(messages), **{**own, **arguments.conversation, "tools": tools})
        return Request(prompt=talk, params=params, request_id=arguments.other.get("request_id"))

    def _completion_request(self, prompt: str, formatted: bool, given: Mapping[str, Any]) -> Request:
        """Returns the request of a completion: one user message, or the prompt as text."""
        arguments = split_arguments(given, {"enable_thinking"}, _OTHER_ARGUMENTS)
        # LlamaIndex formats prompts by either function.
        rendered = self._has_own_completions or (formatted and self._has_own_prompts)
        params = self._call_params(arguments.sampling, rendered)
        if not formatted and self._completes_as_chat(params):
            return self._chat_request([ChatMessage(role=MessageRole.USER, content=prompt)], given)
        if arguments.conversation:
            raise RequestError("enable_thinking needs a chat template, but the prompt is sent as plain text")
        text = prompt if formatted else cast(CompletionToPromptType, self.completion_to_prompt)(prompt)
        return Request(prompt=text, params=params, request_id=arguments.other.get("request_id"))

    def _completes_as_chat(self, params: SamplingParams) -> bool:
        if self.complete_as != "auto":
            return self.complete_as == "chat"
        return (
            not self._has_own_prompts
            and not self._has_own_completions
            and not self._ensemble.without_chat_template(params)
        )

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
    # The threshold is checked even where `use_threshold` is in force.
    return request_params(defaults, {"threshold": fields["threshold"]})


def _as_json(model: Any) -> Any:
    """Returns an entry of ``models`` as JSON can hold it."""
    if isinstance(model, MemberConfig):
        return asdict(model)
    return str(model) if isinstance(model, Path) else model
