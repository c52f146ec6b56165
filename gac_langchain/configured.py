"""`ConfiguredChat`: public methods of a chat model that read settings from ``config["configurable"]``.

LangChain passes the run's configuration to a model's public methods only, not to those that it implements.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.language_models import BaseChatModel, LanguageModelInput
from langchain_core.messages import AIMessage
from langchain_core.runnables import RunnableConfig

from gac_langchain.settings import EnsembleSettings


class ConfiguredChat(EnsembleSettings, BaseChatModel):
    """A chat model whose calls take arguments from their run's configuration (`CONFIGURABLE`) that they do not give."""

    def _get_llm_string(self, stop: list[str] | None = None, **kwargs: Any) -> str:
        # The key of LangChain's cache: only what an answer depends on.
        relevant = {name: value for name, value in kwargs.items() if name not in ("request_id", "timeout")}
        return super()._get_llm_string(stop, **relevant)

    def _streaming_disabled(self, **kwargs: Any) -> bool:
        # Several answers are not streamed because events of a call around this one are; `stream` itself raises.
        asked = kwargs.get("stream") or self.streaming
        return (kwargs.get("n", self.n) != 1 and not asked) or super()._streaming_disabled(**kwargs)

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> AIMessage:
        """Answers; ``config={"configurable": {...}}`` may set the parameters of `CONFIGURABLE`."""
        return super().invoke(input, config, **self._configured(config, kwargs))

    async def ainvoke(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AIMessage:
        """`invoke` for event loops."""
        return await super().ainvoke(input, config, **self._configured(config, kwargs))

    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[Any]:
        """Streams an answer; configuration as in `invoke`."""
        return super().stream(input, config, **self._configured(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[Any]:
        """`stream` for event loops."""
        async for chunk in super().astream(input, config, **self._configured(config, kwargs)):
            yield chunk

    def stream_events(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """Streams events of any ``version``; configuration as in `invoke`."""
        return super().stream_events(input, config, **self._event_arguments(config, kwargs))

    def astream_events(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Any:
        """`stream_events` for event loops."""
        return super().astream_events(input, config, **self._event_arguments(config, kwargs))

    def _event_arguments(self, config: RunnableConfig | None, kwargs: dict[str, Any]) -> dict[str, Any]:
        # Older versions call `astream`, which reads the configuration itself.
        return self._configured(config, kwargs) if kwargs.get("version") == "v3" else kwargs

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """Answers several inputs as one batch of the engine.

        Args:
            inputs: Prompts, in any form that `invoke` takes.
            config: One configuration, or one for each. Default ``max_concurrency``: the engine's batch size.
            return_exceptions: Return errors in place of answers. Default False: the first one is raised.
            **kwargs: As in `invoke`.
        """
        configs = self._concurrent(config, len(inputs))
        return super().batch(inputs, configs, return_exceptions=return_exceptions, **kwargs)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[AIMessage]:
        """`batch` for event loops."""
        configs = self._concurrent(config, len(inputs))
        return await super().abatch(inputs, configs, return_exceptions=return_exceptions, **kwargs)
