"""The bodies of responses, for the OpenAPI document; the server writes them as plain JSON."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field


class _Answer(BaseModel):
    model_config = ConfigDict(extra="forbid", protected_namespaces=())


class ErrorContent(_Answer):
    """What went wrong."""

    message: str
    type: Literal["invalid_request_error", "authentication_error", "rate_limit_error", "server_error"]
    param: str | None = Field(description="Path of the field that is wrong.")
    code: str
    request_id: str


class ErrorBody(_Answer):
    """The body of every error."""

    error: ErrorContent


class PromptDetails(_Answer):
    """Details of the prompt's tokens."""

    cached_tokens: int = Field(ge=0)


class AnswerDetails(_Answer):
    """Details of the answers' tokens."""

    reasoning_tokens: int = Field(ge=0)


class UsageBody(_Answer):
    """Token counts."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: PromptDetails
    completion_tokens_details: AnswerDetails


class TokenAlternative(_Answer):
    """A token and its log-probability."""

    token: str
    logprob: float = Field(le=0)
    bytes: list[int]


class TokenEntry(TokenAlternative):
    """The token at one position, and the most probable ones there."""

    top_logprobs: list[TokenAlternative]


class ChatLogprobs(_Answer):
    """Log-probabilities of an answer's tokens."""

    content: list[TokenEntry]
    refusal: None


class AnsweredFunction(_Answer):
    """The function of a call."""

    name: str
    arguments: str = Field(description="As generated: JSON, unless the answer was cut off.")


class AnsweredCall(_Answer):
    """A call of a tool."""

    id: str
    type: Literal["function"]
    function: AnsweredFunction


class UrlCitation(_Answer):
    """A span of the content, and the document that carried it."""

    start_index: int = Field(ge=0)
    end_index: int = Field(ge=0, description="The character after the last one.")
    url: str
    title: str


class Annotation(_Answer):
    """A citation of a document that has an address."""

    type: Literal["url_citation"]
    url_citation: UrlCitation


class AnswerMessage(_Answer):
    """The message of an answer."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[AnsweredCall] | None = None
    annotations: list[Annotation] | None = Field(None, description="Citations of documents that have a `url`.")


class ChatChoice(_Answer):
    """One answer."""

    index: int = Field(ge=0)
    message: AnswerMessage
    logprobs: ChatLogprobs | None
    finish_reason: Literal["stop", "length", "tool_calls"]
    gac: dict[str, Any] = Field(description="Settings, costs and statistics of the answer.")


class _Completed(_Answer):
    id: str
    created: int
    model: str
    system_fingerprint: str
    usage: UsageBody


class ChatCompletion(_Completed):
    """A chat completion."""

    object: Literal["chat.completion"]
    choices: list[ChatChoice]


class CompletionLogprobs(_Answer):
    """Log-probabilities of a text's tokens."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None]
    text_offset: list[int]


class CompletionChoice(_Answer):
    """One continuation."""

    index: int = Field(ge=0)
    text: str
    logprobs: CompletionLogprobs | None
    finish_reason: Literal["stop", "length"]
    gac: dict[str, Any] = Field(description="Settings, costs and statistics of the answer.")


class Completion(_Completed):
    """A completion."""

    object: Literal["text_completion"]
    choices: list[CompletionChoice]


class ModelShown(_Answer):
    """A model: an ensemble, or one of its members alone."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    max_model_len: int | None
    kind: Literal["ensemble", "member"]
    input_modalities: list[Literal["text", "image"]]
    parent: str | None = None
    members: list[str] | None = None
    vision_members: list[str] | None = Field(
        None, description="The members that read images; the others read the text alone."
    )
    weights: list[float] | str | None = None
    gate: str | None = None
    threshold: float | None = None
    combine: str | None = None
    gate_rule: str | None = None


class ModelList(_Answer):
    """All models."""

    object: Literal["list"]
    data: list[ModelShown]


class TokenizedPrompt(_Answer):
    """The tokens of a prompt."""

    tokens: list[int] = Field(description="Ids of the gate's tokenizer.")
    count: int = Field(ge=0, description="Tokens of the participant that reads most.")
    max_model_len: int | None
    members: dict[str, int] | None = Field(None, description="Tokens of each participant.")


class DetokenizedText(_Answer):
    """The text of tokens."""

    prompt: str


class WarmedByMember(_Answer):
    """What one member did to keep documents."""

    documents: int = Field(ge=0, description="How many of them it keeps.")
    tokens: int = Field(ge=0, description="Tokens that it computed.")
    reused_tokens: int = Field(ge=0, description="Tokens that its KV cache held already.")
    nbytes: int = Field(ge=0, description="Memory of the documents that it keeps.")


class WarmedDocuments(_Answer):
    """Documents that are kept in KV caches."""

    documents: list[str] = Field(description="Their ids, each text once.")
    members: dict[str, WarmedByMember]


class HealthBody(_Answer):
    """Whether the process works."""

    status: Literal["ok", "stuck"]
    reasons: dict[str, str]


class MemberStatus(_Answer):
    """The state of a member."""

    state: str
    reason: str | None


class EnsembleStatus(_Answer):
    """The state of an ensemble."""

    ready: bool
    reason: str | None
    members: dict[str, MemberStatus]


class ReadyBody(_Answer):
    """Whether requests are answered."""

    status: Literal["ready", "not ready", "draining"]
    ensembles: dict[str, EnsembleStatus]
