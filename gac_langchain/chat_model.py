"""`ChatGaC`: an ensemble as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, HumanMessage, SystemMessage
from langchain_core.messages.ai import UsageMetadata
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult

from gac_core import Message, OutputChunk, RequestError, RequestOutput, as_metadata, fold
from gac_langchain.settings import EnsembleSettings


class ChatGaC(EnsembleSettings, BaseChatModel):
    """Chat with an ensemble; each member sees the conversation in its own chat template.

    Calls that arrive together, from ``batch``, threads or tasks, run as one batch.

    Example:
        >>> chat = ChatGaC(models=["model-a", "model-b"])  # doctest: +SKIP
        >>> chat.invoke("Who built the bridge?", threshold=0.5).content  # doctest: +SKIP
    """

    @property
    def _llm_type(self) -> str:
        return "gac-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._identity()

    def get_token_ids(self, text: str) -> list[int]:
        """Returns a text in the gate's ids."""
        return self._loaded.encode(text)

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        output = self._loaded.generate(convert_messages(messages), self._params(stop, kwargs))
        return self._result(output)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        output = await self._loaded.agenerate(convert_messages(messages), self._params(stop, kwargs))
        return self._result(output)

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        parts: list[OutputChunk] = []
        for part in self._loaded.stream(convert_messages(messages), self._params(stop, kwargs)):
            parts.append(part)
            chunk = self._chunk(part, parts)
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[ChatGenerationChunk]:
        parts: list[OutputChunk] = []
        async for part in self._loaded.astream(convert_messages(messages), self._params(stop, kwargs)):
            parts.append(part)
            chunk = self._chunk(part, parts)
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    def _metadata(self, output: RequestOutput) -> dict[str, Any]:
        return {**as_metadata(output), "model_name": "+".join(self._loaded.names), "model_provider": "gac"}

    def _result(self, output: RequestOutput) -> ChatResult:
        message = AIMessage(
            content=output.text, usage_metadata=_usage(output), response_metadata=self._metadata(output)
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _chunk(self, part: OutputChunk, parts: list[OutputChunk]) -> ChatGenerationChunk:
        if part.output is None:
            return ChatGenerationChunk(message=AIMessageChunk(content=part.text))
        message = AIMessageChunk(
            content=part.text,
            usage_metadata=_usage(part.output),
            response_metadata=self._metadata(fold(parts)),
            chunk_position="last",
        )
        return ChatGenerationChunk(message=message)


def _usage(output: RequestOutput) -> UsageMetadata:
    usage = output.usage
    return UsageMetadata(
        input_tokens=usage.prompt_tokens, output_tokens=usage.completion_tokens, total_tokens=usage.total_tokens
    )


def convert_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Turns LangChain messages into the ensemble's.

    Raises:
        RequestError: A message is neither system, human nor AI, or holds something other than text.
    """
    converted: list[Message] = []
    for message in messages:
        if isinstance(message, SystemMessage):
            converted.append(Message("system", _text(message)))
        elif isinstance(message, HumanMessage):
            converted.append(Message("user", _text(message)))
        elif isinstance(message, AIMessage):
            converted.append(Message("assistant", _text(message)))
        else:
            raise RequestError(f"a {type(message).__name__} cannot be told to the members; use system, human and AI")
    return converted


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts: list[str] = []
    for part in message.content:
        if isinstance(part, str):
            parts.append(part)
        elif part.get("type") == "text":
            parts.append(part["text"])
        else:
            raise RequestError(f"the members read text only; a message holds a part of type {part.get('type')!r}")
    return "".join(parts)
