"""What a `GaCLLM` is made of: its settings, its ensemble, and how both are kept, copied and written down.

Knows how a call's arguments become a request; knows nothing of responses.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self, cast

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, LLMMetadata, MessageRole
from llama_index.core.bridge.pydantic import PrivateAttr, ValidationError
from llama_index.core.llms.llm import CompletionToPromptType, MessagesToPromptType, default_completion_to_prompt

from gac_core import (
    ENSEMBLE_FIELDS,
    SAMPLING_FIELDS,
    ChatTemplateError,
    ConfigError,
    Conversation,
    Ensemble,
    EnsembleConfig,
    MemberConfig,
    Prompt,
    RequestError,
    SamplingParams,
    UnknownArgumentError,
    ambient_gate,
    ambient_threshold,
    open_ensemble,
    request_params,
)
from gac_llamaindex.fields import FIXED, EnsembleFields, fixed, invalid
from gac_llamaindex.messages import convert_messages

_OF_CONVERSATIONS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "tool_format", "enable_thinking"})
_OF_CALLS = frozenset({"request_id"})
# LlamaIndex wants a number where no member sets a limit.
_NO_LIMIT = 1_000_000
# Fields that LlamaIndex does not serialize and that another process needs for the same answers.
_PICKLED = ("messages_to_prompt", "completion_to_prompt", "output_parser", "query_wrapper_prompt")
_TEMPLATE_REMEDIES = (
    'set MemberConfig.chat_template (a Jinja template, or "plain" for a base model), or give GaCLLM a '
    "messages_to_prompt function, by which every member reads a conversation as one text"
)
_logger = logging.getLogger(__name__)


class EnsembleLLM(EnsembleFields):
    """The settings of `GaCLLM` and the ensemble behind them; see there."""

    _ensemble: Ensemble = PrivateAttr()

    def __init__(
        self,
        models: Sequence[Any] | None = None,
        ensemble: Ensemble | None = None,
        config: EnsembleConfig | Mapping[str, Any] | str | Path | None = None,
        **fields: Any,
    ) -> None:
        known = set(type(self).model_fields)
        if set(fields) - known:
            raise UnknownArgumentError(set(fields) - known, known | {"ensemble"})
        try:
            super().__init__(**fields)
        except ValidationError as error:
            raise ConfigError(invalid(error, type(self))) from error
        # Wrong defaults are errors of the constructor, before anything is loaded.
        params = self._params({"threshold": self.threshold})
        loading = {name: getattr(self, name) for name in ENSEMBLE_FIELDS}
        opened = open_ensemble(models, ensemble, config, params, **loading)
        if models is None:
            self.config = asdict(opened.config)
            for name in FIXED & set(ENSEMBLE_FIELDS):
                setattr(self, name, None)
        else:
            self.models = [_plain(model) for model in models]
        self._ensemble = opened
        self._ensemble.check(params)
        self._warn_of_missing_templates()

    @classmethod
    def from_config(cls, config: EnsembleConfig | Mapping[str, Any] | str | Path, **fields: Any) -> Self:
        """Makes one of a configuration or a YAML file; whoever asks for the same one shares the loaded members.

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
            context_window=self._ensemble.context_for(self._usual()) or _NO_LIMIT,
            num_output=self.max_tokens,
            is_chat_model=chat,
            is_function_calling_model=chat and not self._has_own_prompts,
            model_name="+".join(self._ensemble.names),
        )

    def encode(self, text: str) -> list[int]:
        """Returns a text in the gate's ids, to count with: as ``Settings.tokenizer``, or a token counter's."""
        return self._ensemble.encode(text)

    def with_threshold(self, threshold: float | Literal["default"] | None) -> Self:
        """Returns a copy with another threshold on the same loaded ensemble.

        For query engines and agents, which pass no arguments on. Where `gac_core.use_threshold` is in force, that one
        stands above the copy's.

        Args:
            threshold: As `gac_core.SamplingParams.threshold`.

        Raises:
            RequestError: It is out of range.
        """
        SamplingParams(threshold=threshold)
        return self.model_copy(update={"threshold": threshold})

    def with_gate(self, gate: str | None) -> Self:
        """Returns a copy with another gate on the same loaded ensemble, as `with_threshold` does.

        Args:
            gate: Name of a member; None: the ensemble's own gate.

        Raises:
            RequestError: The gate is not a member.
        """
        # At any threshold: it may be set later.
        self._ensemble.check(self._params({"gate": gate, "threshold": 0.0}))
        return self.model_copy(update={"gate": gate})

    def to_payload(self) -> dict[str, Any]:
        """Returns what start events tell of this model: its metadata, members, weights, gate and threshold."""
        config = self._ensemble.config
        threshold = ambient_threshold(self.threshold)
        return {
            **super().to_payload(),
            "members": list(config.names),
            "weights": [member.weight for member in config.members],
            "gate": ambient_gate(self.gate) or self._ensemble.gate,
            "threshold": config.threshold if threshold == "default" else threshold,
        }

    # ---- changes, copies and pickles

    def __setattr__(self, name: str, value: Any) -> None:
        if name in FIXED and (getattr(self, "__pydantic_private__", None) or {}).get("_ensemble") is not None:
            raise fixed([name])
        super().__setattr__(name, value)

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Returns a copy on the same loaded ensemble, with some fields replaced.

        Args:
            update: New values by field; none that say which members are loaded and how. Default none.
            deep: Whether mutable values are copied too; the ensemble is always shared. Default False.

        Raises:
            ConfigError: A field says which members are loaded or how.
        """
        if changed := sorted(FIXED & set(update or ())):
            raise fixed(changed)
        return super().model_copy(update=update, deep=deep)

    def __reduce__(self) -> tuple[Any, ...]:
        # The settings, by which another process loads the members anew, and the functions, which pickle by name.
        # Callbacks and rate limiters belong to their process.
        return _restored, (type(self), self.to_dict(), self._pickled())

    def _pickled(self) -> dict[str, Any]:
        """The functions that were given.

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
                # Unpicklable values raise errors of many types.
                raise ConfigError(
                    f"{name} cannot be pickled: {error}; give a function or class that is defined at the top level of "
                    "a module, not a lambda or a function within another"
                ) from error
            given[name] = value
        return given

    # ---- from a call's arguments to a request

    def _params(self, overrides: Mapping[str, Any], rendered: bool = False) -> SamplingParams:
        """The parameters of a call; control tokens count in prompts that the user's own functions have rendered."""
        values = {name: getattr(self, name) for name in type(self).model_fields}
        if values["parse_special"] is None:
            values["parse_special"] = rendered
        return request_params(values, overrides)

    def _talk(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> tuple[Prompt, SamplingParams]:
        """The request of a conversation."""
        known = SAMPLING_FIELDS | _OF_CONVERSATIONS | _OF_CALLS
        if set(given) - known:
            raise UnknownArgumentError(set(given) - known, known)
        sampling = {name: value for name, value in given.items() if name in SAMPLING_FIELDS}
        params = self._params(sampling, rendered=self._has_own_prompts)
        asked = {name: value for name, value in given.items() if name in _OF_CONVERSATIONS}
        if not self._has_own_prompts:
            self._require_templates(params)
        else:
            if asked.get("tools"):
                raise RequestError("tools are told by the members' chat templates; leave messages_to_prompt out")
            return cast(MessagesToPromptType, self.messages_to_prompt)(messages), params
        own = {"tool_format": self.tool_format, "enable_thinking": self.enable_thinking}
        asked["tools"] = asked.get("tools") or ()
        return Conversation(convert_messages(messages), **{**own, **asked}), params

    def _completion(self, prompt: str, formatted: bool, given: Mapping[str, Any]) -> tuple[Prompt, SamplingParams]:
        """The request of a completion: one user message, or the prompt as text."""
        known = SAMPLING_FIELDS | _OF_CALLS | {"enable_thinking"}
        if set(given) - known:
            raise UnknownArgumentError(set(given) - known, known)
        # LlamaIndex formats prompts by either function.
        rendered = self._has_own_completions or (formatted and self._has_own_prompts)
        params = self._params({name: value for name, value in given.items() if name in SAMPLING_FIELDS}, rendered)
        if not formatted and self._completes_as_chat(params):
            return self._talk([ChatMessage(role=MessageRole.USER, content=prompt)], given)
        if "enable_thinking" in given:
            raise RequestError("enable_thinking is a chat template's; a prompt that is sent as text goes through none")
        return prompt if formatted else cast(CompletionToPromptType, self.completion_to_prompt)(prompt), params

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

    def _usual(self) -> SamplingParams:
        """Threshold and gate of a request that gives neither."""
        return SamplingParams(threshold=ambient_threshold(self.threshold), gate=ambient_gate(self.gate))

    def _without_template(self) -> list[str]:
        """The members without a chat template that take part in a request with the fields' values."""
        return self._ensemble.without_chat_template(self._usual())

    def _require_templates(self, params: SamplingParams) -> None:
        missing = self._ensemble.without_chat_template(params)
        if missing:
            raise ChatTemplateError(missing[0], f"it has no chat template; {_TEMPLATE_REMEDIES}")

    def _warn_of_missing_templates(self) -> None:
        """Logs which members switch off chat and tools that the others could do."""
        missing = self._without_template()
        if not self._has_own_prompts and 0 < len(missing) < len(self._ensemble.names):
            _logger.warning(
                "no chat and no tools, since member %s has no chat template; %s",
                ", ".join(map(repr, missing)),
                _TEMPLATE_REMEDIES,
            )


def _restored(cls: type[EnsembleLLM], settings: dict[str, Any], functions: dict[str, Any]) -> EnsembleLLM:
    return cls.from_dict(settings, **functions)


def _plain(model: Any) -> Any:
    """A model as JSON can hold it, so that settings can be written down."""
    if isinstance(model, MemberConfig):
        return asdict(model)
    return str(model) if isinstance(model, Path) else model
