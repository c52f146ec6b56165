"""What a `GaCLLM` is made of: its settings, its ensemble, and how both are kept, copied and written down.

Knows how a call's arguments become a request; knows nothing of responses.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, Self, cast

from llama_index.core.base.llms.generic_utils import messages_to_prompt as generic_messages_to_prompt
from llama_index.core.base.llms.types import ChatMessage, LLMMetadata
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.llms.llm import CompletionToPromptType, MessagesToPromptType

from gac_core import (
    LOADING,
    PARAMETERS,
    Conversation,
    Ensemble,
    EnsembleConfig,
    MemberConfig,
    Prompt,
    RequestError,
    SamplingParams,
    UnknownArgumentError,
    open_ensemble,
    request_params,
)
from gac_llamaindex.messages import convert_messages

_OF_CONVERSATIONS = frozenset({"tools", "tool_choice", "parallel_tool_calls", "tool_format", "enable_thinking"})
# LlamaIndex wants a number where no member sets a limit.
_NO_LIMIT = 1_000_000


class EnsembleLLM(FunctionCallingLLM):
    """The settings of `GaCLLM` and the ensemble behind them; see there."""

    models: list[Any] | None = Field(default=None, description="Names, folders or member configs.")
    config: dict[str, Any] | None = Field(default=None, description="A whole configuration, in place of models.")
    weights: list[float] | None = None
    dtype: str | None = None
    device: str | None = None
    device_map: Any = None
    quantization: str | None = None
    commit: str | None = None
    alignment: str | None = None
    max_batch_size: int | None = None
    max_queue: int | None = None
    prefill_tokens: int | None = None
    cache_gib: float | None = None
    gate: str | None = None
    threshold: float | Literal["default"] | None = "default"
    max_tokens: int = 256
    temperature: float = 0.0
    top_k: int | None = None
    top_p: float = 1.0
    min_p: float = 0.0
    repetition_penalty: float = 1.0
    seed: int | None = None
    stop: str | list[str] | None = None
    logprobs: int | None = None
    drafts: bool = True
    tool_format: Literal["auto", "common", "native"] = "auto"
    enable_thinking: bool | None = None
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
        super().__init__(**fields)
        loading = {name: getattr(self, name) for name in LOADING}
        self._ensemble = open_ensemble(models, ensemble, config, **loading)
        if models is None:
            self.config = asdict(self._ensemble.config)
            for name in LOADING:
                setattr(self, name, None)
        else:
            self.models = [_plain(model) for model in models]
        # Wrong defaults are told now, not at the first question.
        self._ensemble.check(self._params({}))

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
        """The smallest context of the members; chat and tools if every member has a chat template."""
        return LLMMetadata(
            context_window=self._ensemble.context or _NO_LIMIT,
            num_output=self.max_tokens,
            is_chat_model=self._ensemble.has_chat_templates,
            is_function_calling_model=self._ensemble.has_chat_templates,
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

    def __reduce__(self) -> tuple[Any, ...]:
        # As to_dict and from_dict have it: the settings, by which another process loads the members anew.
        return type(self).from_dict, (self.to_dict(),)

    # ---- from a call's arguments to a request

    def _params(self, overrides: Mapping[str, Any]) -> SamplingParams:
        return request_params({name: getattr(self, name) for name in type(self).model_fields}, overrides)

    def _talk(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> tuple[Prompt, SamplingParams]:
        """The request of a conversation."""
        unknown = set(given) - PARAMETERS - _OF_CONVERSATIONS
        if unknown:
            raise UnknownArgumentError(unknown, PARAMETERS | _OF_CONVERSATIONS)
        params = self._params({name: value for name, value in given.items() if name in PARAMETERS})
        asked = {name: value for name, value in given.items() if name in _OF_CONVERSATIONS}
        if self.messages_to_prompt is not generic_messages_to_prompt:
            if asked.get("tools"):
                raise RequestError("tools are told by the members' chat templates; leave messages_to_prompt out")
            return cast(MessagesToPromptType, self.messages_to_prompt)(messages), params
        own = {"tool_format": self.tool_format, "enable_thinking": self.enable_thinking}
        asked["tools"] = asked.get("tools") or ()
        return Conversation(convert_messages(messages), **{**own, **asked}), params

    def _text(self, prompt: str, formatted: bool) -> str:
        return prompt if formatted else cast(CompletionToPromptType, self.completion_to_prompt)(prompt)


def _plain(model: Any) -> Any:
    """A model as JSON can hold it, so that settings can be written down."""
    if isinstance(model, MemberConfig):
        return asdict(model)
    return str(model) if isinstance(model, Path) else model
