"""`GaCLLM`: an ensemble as a LlamaIndex LLM, with async methods of its own."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    LLMMetadata,
    MessageRole,
    TextBlock,
)
from llama_index.core.bridge.pydantic import Field, PrivateAttr
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import LLM

from gac_core import (
    PARAMETERS,
    ConfigError,
    Ensemble,
    Message,
    OutputChunk,
    RequestError,
    RequestOutput,
    SamplingParams,
    UnknownArgumentError,
    as_metadata,
    fold,
    request_params,
)

_ROLES: dict[MessageRole, Literal["system", "user", "assistant"]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
}


class GaCLLM(LLM):
    """An ensemble for LlamaIndex.

    Args:
        models: Names on a model hub, folders, mappings or `gac_core.MemberConfig`; or
        ensemble: a loaded `gac_core.Ensemble`, shared with whoever else holds it.
        weights: One per model. Default 1 each.
        dtype: For example ``"float32"``; default as stored.
        device: For example ``"cuda:0"``.
        device_map: As in accelerate.
        commit: ``"canonical"`` or ``"context-free"``; default the library's, see `gac_core.EnsembleConfig`.
        alignment: ``"token"`` or ``"boundary"``; likewise.
        **fields: Defaults of `gac_core.SamplingParams`, by name; each call may override them.

    Example:
        >>> llm = GaCLLM(models=["model-a", "model-b"], threshold=0.5)  # doctest: +SKIP
        >>> llm.complete("The capital of France is", max_tokens=5).text  # doctest: +SKIP
    """

    models: list[Any] | None = Field(default=None, description="Names, folders or member configs.")
    weights: list[float] | None = None
    dtype: str | None = None
    device: str | None = None
    device_map: Any = None
    commit: str | None = None
    alignment: str | None = None
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
    _ensemble: Ensemble = PrivateAttr()

    def __init__(self, models: Sequence[Any] | None = None, ensemble: Ensemble | None = None, **fields: Any) -> None:
        known = set(type(self).model_fields)
        if set(fields) - known:
            raise UnknownArgumentError(set(fields) - known, known | {"ensemble"})
        if (models is None) == (ensemble is None):
            raise ConfigError("give either models=[...] or ensemble=..., and not both")
        super().__init__(**{"models": None if models is None else list(models), **fields})
        self._ensemble = ensemble or Ensemble.shared(
            self.models or [],
            weights=self.weights,
            dtype=self.dtype,
            device=self.device,
            device_map=self.device_map,
            commit=self.commit,
            alignment=self.alignment,
        )
        # Wrong defaults are told now, not at the first question.
        self._params({})

    @classmethod
    def class_name(cls) -> str:
        """Name used by LlamaIndex."""
        return "GaCLLM"

    @property
    def metadata(self) -> LLMMetadata:
        """The smallest context of the members; a chat model if every member has a chat template."""
        return LLMMetadata(
            context_window=self._ensemble.context or 1_000_000,
            num_output=self.max_tokens,
            is_chat_model=self._ensemble.has_chat_templates,
            model_name="+".join(self._ensemble.names),
        )

    # ---- chat

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers a conversation."""
        return _chat_response(self._ensemble.generate(convert_messages(messages), self._params(kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers a conversation without blocking the event loop."""
        return _chat_response(await self._ensemble.agenerate(convert_messages(messages), self._params(kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Streams the answer; each response holds the text so far and what is new."""
        stream = self._ensemble.stream(convert_messages(messages), self._params(kwargs))

        def responses() -> ChatResponseGen:
            parts: list[OutputChunk] = []
            for part in stream:
                parts.append(part)
                yield _chat_delta(part, parts)

        return responses()

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` for event loops."""
        stream = self._ensemble.astream(convert_messages(messages), self._params(kwargs))

        async def responses() -> ChatResponseAsyncGen:
            parts: list[OutputChunk] = []
            async for part in stream:
                parts.append(part)
                yield _chat_delta(part, parts)

        return responses()

    # ---- completion

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Continues a text as it stands; no chat template is applied."""
        return _completion(self._ensemble.generate(prompt, self._params(kwargs)))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete` without blocking the event loop."""
        return _completion(await self._ensemble.agenerate(prompt, self._params(kwargs)))

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Streams a continuation; each response holds the text so far and what is new."""
        stream = self._ensemble.stream(prompt, self._params(kwargs))

        def responses() -> CompletionResponseGen:
            parts: list[OutputChunk] = []
            for part in stream:
                parts.append(part)
                yield _completion_delta(part, parts)

        return responses()

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete` for event loops."""
        stream = self._ensemble.astream(prompt, self._params(kwargs))

        async def responses() -> CompletionResponseAsyncGen:
            parts: list[OutputChunk] = []
            async for part in stream:
                parts.append(part)
                yield _completion_delta(part, parts)

        return responses()

    def _params(self, overrides: Mapping[str, Any]) -> SamplingParams:
        return request_params({name: getattr(self, name) for name in PARAMETERS}, overrides)


def convert_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Turns LlamaIndex messages into the ensemble's.

    Raises:
        RequestError: A message's role is not system, user or assistant, or it holds something other than text.
    """
    converted: list[Message] = []
    for message in messages:
        role = _ROLES.get(message.role)
        if role is None:
            raise RequestError(f"a message of role {message.role.value!r} cannot be told to the members")
        for block in message.blocks:
            if not isinstance(block, TextBlock):
                raise RequestError(f"the members read text only; a message holds a {type(block).__name__}")
        converted.append(Message(role, message.content or ""))
    return converted


def _raw(output: RequestOutput) -> dict[str, Any]:
    usage = output.usage
    counts = {
        "prompt_tokens": usage.prompt_tokens,
        "completion_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    return {**as_metadata(output), "usage": counts}


def _chat_response(output: RequestOutput) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content=output.text)
    return ChatResponse(message=message, raw=_raw(output))


def _completion(output: RequestOutput) -> CompletionResponse:
    return CompletionResponse(text=output.text, raw=_raw(output))


def _chat_delta(part: OutputChunk, parts: list[OutputChunk]) -> ChatResponse:
    message = ChatMessage(role=MessageRole.ASSISTANT, content="".join(chunk.text for chunk in parts))
    return ChatResponse(message=message, delta=part.text, raw=_raw(fold(parts)) if part.output else None)


def _completion_delta(part: OutputChunk, parts: list[OutputChunk]) -> CompletionResponse:
    text = "".join(chunk.text for chunk in parts)
    return CompletionResponse(text=text, delta=part.text, raw=_raw(fold(parts)) if part.output else None)
