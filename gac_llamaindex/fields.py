"""The fields of `GaCLLM`, and the errors that name one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from llama_index.core.bridge.pydantic import Field, ValidationError
from llama_index.core.llms.function_calling import FunctionCallingLLM

from gac_core import ENSEMBLE_FIELDS, SAMPLING_FIELDS, ConfigError, quote

FIXED = frozenset({"models", "config", *ENSEMBLE_FIELDS}) - SAMPLING_FIELDS
"""The fields that the loaded ensemble was made of; changing them afterwards would have no effect."""


class EnsembleFields(FunctionCallingLLM):
    """The fields of `GaCLLM`; see there."""

    models: list[Any] | None = Field(default=None, description="Model hub names, folders or member configurations.")
    config: dict[str, Any] | None = Field(default=None, description="A whole configuration, in place of models.")
    weights: dict[str, float] | list[float] | None = Field(
        default=None, description="Weight of each member, in order or by name. Default: the ensemble's, 1 each."
    )
    dtype: str | None = Field(default=None, description='For example "bfloat16". Default: as stored.')
    device: str | None = Field(default=None, description='For example "cuda:0". Default: GPUs in turn, else the CPU.')
    device_map: Any = Field(default=None, description="Placement over devices, as in accelerate.")
    quantization: str | None = Field(default=None, description='"8bit" or "4bit". Default: none.')
    commit: str | None = Field(default=None, description='"canonical" or "context-free"; see EnsembleConfig.')
    alignment: str | None = Field(default=None, description='"token", the only rule; see EnsembleConfig.')
    combine: str | None = Field(default=None, description='"arithmetic" or "geometric"; see EnsembleConfig.')
    gate_rule: str | None = Field(default=None, description='"confidence" or "margin"; see EnsembleConfig.')
    max_batch_size: int | None = Field(default=None, description="Requests that run at once.")
    max_queue: int | None = Field(default=None, description="Requests that may wait.")
    prefill_tokens: int | None = Field(default=None, description="Prompt tokens read per step beside running requests.")
    prefill_seconds: float | None = Field(default=None, description="Seconds of that per step beside running requests.")
    cache_gib: float | None = Field(default=None, description="Memory per member for the KV cache, in GiB.")
    deterministic: bool | None = Field(default=None, description="Compute each request by itself, bit for bit.")
    stuck_after: float | None = Field(default=None, description="Seconds after which a step counts as stuck.")
    gate: str | None = Field(default=None, description="Name of the gate member. Default: the ensemble's.")
    threshold: float | Literal["default"] | None = Field(
        default="default",
        description="Probability from which the gate decides alone; None: ensemble every step.",
    )
    max_tokens: int = Field(default=256, description="Most tokens to generate.")
    temperature: float = Field(default=0.0, description="Sampling temperature; 0 is greedy.")
    top_k: int | None = Field(default=None, description="Sample from the k most probable tokens. Default: all.")
    top_p: float = Field(default=1.0, description="Sample from the smallest set of tokens with this probability mass.")
    min_p: float = Field(default=0.0, description="Least probability of a token, relative to the most probable one.")
    repetition_penalty: float = Field(default=1.0, description="Above 1, seen tokens become less likely.")
    seed: int | None = Field(default=None, description="Seed of sampling. Default: a random one.")
    stop: str | list[str] | None = Field(default=None, description="Strings that end the text.")
    logprobs: int | None = Field(default=None, description="Log-probabilities of this many tokens per position.")
    drafts: bool = Field(default=True, description="Speculative decoding; changes the cost only.")
    parse_special: bool | None = Field(
        default=None,
        description="Whether text of a prompt that spells control tokens becomes control tokens. Default: only in "
        "prompts that your messages_to_prompt or completion_to_prompt has rendered.",
    )
    token_stats: bool = Field(default=False, description="Confidence and agreement of each token.")
    timeout: float | None = Field(default=None, description="Seconds that a call may take. Default: no limit.")
    tool_format: Literal["auto", "common", "native"] = Field(
        default="auto", description="How tools are described to the members; see Conversation."
    )
    enable_thinking: bool | None = Field(
        default=None, description="Whether templates that can switch reasoning do so. Default: the template's own."
    )
    close_structures: bool = Field(
        default=True, description="Whether structured answers are closed within max_tokens instead of cut off."
    )
    raise_on_structured_prediction_failure: bool = Field(
        default=True, description="Whether structured_predict raises on a bad answer, or returns the error's text."
    )
    complete_as: Literal["auto", "chat", "text"] = Field(
        default="auto",
        description=(
            'What complete sends: "chat" one user message through each member\'s chat template, "text" the prompt '
            'as it is; "auto" is "chat" if every member has a chat template and neither completion_to_prompt nor '
            "messages_to_prompt is given."
        ),
    )


def fixed(names: Sequence[str]) -> ConfigError:
    """Returns the error of setting fields of `FIXED` on a loaded model."""
    return ConfigError(
        f"{', '.join(names)} cannot be changed once the members are loaded; make a new one: GaCLLM(models=[...], ...)"
    )


def invalid(error: ValidationError, cls: type[EnsembleFields]) -> str:
    """Returns what is wrong with the first invalid field, and what the field is."""
    found = error.errors(include_url=False)
    name = str(found[0]["loc"][0]) if found[0]["loc"] else ""
    reasons = dict.fromkeys(each["msg"] for each in found if each["loc"][:1] == found[0]["loc"][:1])
    field = cls.model_fields.get(name)
    told = f" ({field.description})" if field is not None and field.description else ""
    return f"{name} cannot be {quote(found[0]['input'])}: {'; or '.join(reasons)}{told}"
