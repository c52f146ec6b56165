"""`EnsembleFields`: the fields of both LangChain models, and checks of their types."""

from __future__ import annotations

from functools import cache
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from gac_core import WRAPPER_FIELDS, field_error


def _field(name: str) -> Any:
    """Returns a field as `gac_core.WRAPPER_FIELDS` has it."""
    return Field(**WRAPPER_FIELDS[name].options())


_OF_LANGCHAIN = {
    "name": "Name of the model in traces. Default: that of its class.",
    "cache": "Cache of answers: its own, True: the global one, False: none. Default: the global one, if it is set.",
    "verbose": "Whether LangChain prints runs.",
    "callbacks": "Handlers that are called at the beginning and end of each call, and with its tokens.",
    "tags": "Tags of the model's runs in traces.",
    "metadata": "Metadata of the model's runs in traces.",
    "custom_get_token_ids": "Function that turns a text into token ids. Default: the gate's tokenizer.",
    "rate_limiter": "Limits how often the model is called. Default: no limit.",
    "disable_streaming": 'Whether stream calls invoke; "tool_calling": only where the call has tools.',
    "output_version": 'Form of the content of answers, such as "v1": content blocks. Default: text.',
    "profile": "What the model can do, as LangChain's agents read it. Default: as the members can.",
}
"""Descriptions of LangChain's own fields, which have none."""


class EnsembleFields(BaseModel):
    """The fields of both LangChain models; see `EnsembleSettings`."""

    @classmethod
    def __pydantic_init_subclass__(cls, **kwargs: Any) -> None:
        super().__pydantic_init_subclass__(**kwargs)
        for name, field in cls.model_fields.items():
            field.description = field.description or _OF_LANGCHAIN.get(name)

    model_config = ConfigDict(arbitrary_types_allowed=True)

    models: list[Any] | None = Field(
        default=None,
        description="A list, such as ['model-a', 'model-b'], of names on a hub, folders, mappings or MemberConfig.",
    )
    ensemble: Any = Field(default=None, exclude=True, description="A loaded ensemble, in place of models.")
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
    logit_bias: dict[int | str | bytes, float] | None = _field("logit_bias")
    n: int = _field("n")
    seed: int | None = _field("seed")
    stop: str | list[str] | None = _field("stop")
    logprobs: int | None = _field("logprobs")
    grammar: Any = _field("grammar")
    drafts: bool = _field("drafts")
    parse_special: bool = _field("parse_special")
    token_stats: bool = _field("token_stats")
    timeout: float | None = _field("timeout")
    streaming: bool = Field(default=False, description="Whether invoke reports each token to callbacks.")


def type_error(cls: type[BaseModel], error: ValidationError, name: str | None = None) -> Exception:
    """Returns pydantic's error about fields as a `ConfigError`.

    Args:
        cls: The model's class.
        error: The error.
        name: The field, where the error concerns its value alone. Default: as the error says.
    """
    errors = [{**each, "loc": (name,) if name else each["loc"]} for each in error.errors(include_url=False)]
    return field_error(errors, {name: field.description for name, field in cls.model_fields.items()}) or error


@cache
def _adapter(cls: type[BaseModel], name: str) -> TypeAdapter[Any]:
    """Returns what checks the value of a field."""
    field = cls.model_fields[name]
    annotated: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(annotated, config=ConfigDict(arbitrary_types_allowed=True))


def converted(cls: type[BaseModel], name: str, value: Any, strict: bool = False) -> Any:
    """Returns a field's value as pydantic keeps it.

    Args:
        cls: The model's class.
        name: The field.
        value: The value.
        strict: Whether values of other types are refused rather than converted. Default False.

    Raises:
        ConfigError: It has another type.
    """
    try:
        return _adapter(cls, name).validate_python(value, strict=strict)
    except ValidationError as error:
        raise type_error(cls, error, name) from error
