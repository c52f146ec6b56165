"""The fields of `GaCLLM`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any, Literal

from llama_index.core.bridge.pydantic import Field, field_serializer
from llama_index.core.callbacks import CallbackManager
from llama_index.core.llms.function_calling import FunctionCallingLLM
from llama_index.core.types import PydanticProgramMode

from gac_core import CONVERSATION_FIELDS, WRAPPER_FIELDS, Grammar

Bias = dict[int | str | bytes, float]


def _field(name: str, **checks: Any) -> Any:
    """Returns a field as `gac_core.WRAPPER_FIELDS` or `gac_core.CONVERSATION_FIELDS` has it."""
    return Field(**{**WRAPPER_FIELDS, **CONVERSATION_FIELDS}[name].options(), **checks)


class EnsembleFields(FunctionCallingLLM):
    """The fields of `GaCLLM`; see there."""

    models: list[Any] | None = Field(default=None, description="Model hub names, folders or member configurations.")
    config: dict[str, Any] | None = Field(default=None, description="A whole configuration, in place of models.")
    weights: dict[str, float] | list[float] | Literal["auto", "perplexity"] | None = _field("weights")
    dtype: str | None = _field("dtype")
    device: str | None = _field("device")
    device_map: Any = _field("device_map")
    quantization: str | None = _field("quantization")
    commit: str | None = _field("commit")
    alignment: str | None = _field("alignment")
    combine: str | None = _field("combine")
    combine_documents: str | None = _field("combine_documents")
    gate_rule: str | None = _field("gate_rule")
    max_batch_size: int | None = _field("max_batch_size")
    max_queue: int | None = _field("max_queue")
    prefill_tokens: int | None = _field("prefill_tokens")
    prefill_seconds: float | None = _field("prefill_seconds")
    cache_gib: float | None = _field("cache_gib")
    document_cache_gib: float | None = _field("document_cache_gib")
    deterministic: bool | None = _field("deterministic")
    stuck_after: float | None = _field("stuck_after")
    on_member_failure: str | None = _field("on_member_failure")
    min_members: int | None = _field("min_members")
    gate_must_live: bool | None = _field("gate_must_live")
    forward_timeout: float | None = _field("forward_timeout")
    executor: str | None = _field("executor")
    ray_address: str | None = _field("ray_address")
    devices: list[str] | None = _field("devices")
    progress: bool | None = _field("progress")
    calibration: str | dict[str, Any] | None = _field("calibration")
    absence: str | dict[str, Any] | None = _field("absence")
    gate: str | None = _field("gate")
    threshold: float | Literal["default"] | None = _field("threshold")
    max_tokens: int = _field("max_tokens")
    temperature: float = _field("temperature")
    top_k: int | None = _field("top_k")
    top_p: float = _field("top_p")
    min_p: float = _field("min_p")
    repetition_penalty: float = _field("repetition_penalty")
    presence_penalty: float = _field("presence_penalty")
    frequency_penalty: float = _field("frequency_penalty")
    logit_bias: Bias | None = _field("logit_bias")
    seed: int | None = _field("seed")
    stop: str | list[str] | None = _field("stop")
    logprobs: int | None = _field("logprobs")
    grammar: Any = _field("grammar")
    drafts: bool = _field("drafts")
    token_stats: bool = _field("token_stats")
    timeout: float | None = _field("timeout")
    parse_special: bool | None = Field(
        default=None,
        description=f"{WRAPPER_FIELDS['parse_special'].description} Default: only in prompts that your "
        "messages_to_prompt or completion_to_prompt has rendered.",
    )
    tool_format: Literal["auto", "common", "native"] = Field(
        default="auto", description="How prompts describe tools; see Conversation."
    )
    tool_choice: str | bool | dict[str, Any] | None = _field("tool_choice")
    parallel_tool_calls: bool | None = Field(
        default=None,
        strict=True,
        description="Whether an answer may call several tools, in place of the allow_parallel_tool_calls that "
        "LlamaIndex's methods and agents pass. Default: as they pass.",
    )
    enable_thinking: bool | None = _field("enable_thinking", strict=True)
    close_structures: bool = Field(
        default=True,
        strict=True,
        description="Whether structured answers end early, as valid JSON, where max_tokens would truncate them.",
    )
    raise_on_structured_prediction_failure: bool = Field(
        default=True,
        strict=True,
        description="Whether structured_predict raises on an invalid answer, or returns the error's text.",
    )
    complete_as: Literal["auto", "chat", "text"] = Field(
        default="auto",
        description=(
            'What complete sends: "chat" one user message through each member\'s chat template, "text" the prompt '
            'as it is; "auto" is "chat" if every member has a chat template and neither completion_to_prompt nor '
            "messages_to_prompt is given."
        ),
    )

    # LlamaIndex's fields that have no description there.
    callback_manager: CallbackManager = Field(
        default_factory=lambda: CallbackManager([]), exclude=True, description="Handlers of LlamaIndex's callbacks."
    )
    pydantic_program_mode: PydanticProgramMode = Field(
        default=PydanticProgramMode.DEFAULT,
        description="How structured_predict makes objects. Default: by a grammar; others: LlamaIndex's own programs.",
    )

    @classmethod
    @cache
    def own(cls) -> frozenset[str]:
        """Returns the names of the fields that LlamaIndex's models do not have."""
        return frozenset(EnsembleFields.model_fields) - frozenset(FunctionCallingLLM.model_fields)

    @field_serializer("logit_bias")
    def _bias_as_pairs(self, bias: Bias | None) -> list[list[Any]] | None:
        # As a mapping, JSON would make strings of token ids.
        if bias is None:
            return None
        return [[list(token) if isinstance(token, bytes) else token, number] for token, number in bias.items()]


def read_grammar(given: Any) -> Any:
    """Returns ``grammar`` as a `gac_core.Grammar`; a mapping of its fields is how `GaCLLM.to_dict` writes it."""
    if not isinstance(given, Mapping):
        return given
    parts = {"answer": read_grammar(given.get("answer")), "tools": tuple(map(tuple, given.get("tools") or ()))}
    return Grammar(**{**given, **parts})


def read_bias(given: Any) -> Any:
    """Returns ``logit_bias`` as a mapping; pairs of tokens and numbers are how `GaCLLM.to_dict` writes it."""
    if not isinstance(given, list):
        return given
    return {bytes(token) if isinstance(token, list) else token: number for token, number in given}
