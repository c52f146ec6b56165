"""Structured answers of an ensemble as LlamaIndex asks for them.

Knows LlamaIndex's methods and events; what is asked of the models and how it is read is told in
`gac_llamaindex.structured`.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping
from typing import Any, cast

from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.bridge.pydantic import ValidationError
from llama_index.core.instrumentation.events.llm import LLMStructuredPredictEndEvent, LLMStructuredPredictStartEvent
from llama_index.core.program.utils import FlexibleModel
from llama_index.core.prompts import BasePromptTemplate, PromptTemplate
from llama_index.core.types import Model, PydanticProgramMode
from llama_index_instrumentation import get_dispatcher

from gac_core import AnswerError
from gac_llamaindex.base import EnsembleLLM
from gac_llamaindex.structured import ObjectReader, Response, ask_for, read_object, told, with_schema

_dispatcher = get_dispatcher(__name__)


class PredictingLLM(EnsembleLLM):
    """`EnsembleLLM` with structured answers; how they are generated is `GaCLLM`'s."""

    def structured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """Answers with an object of a pydantic class; its JSON schema is enforced.

        With ``close_structures`` (default) the object is closed within ``max_tokens`` and a warning is logged: as they
        run out, lists get no further items, optional fields are left out and strings end.

        With ``raise_on_structured_prediction_failure=False`` an answer that is no object of the class is returned as
        the error's text, which `StructuredLLMRerank` with the setting of that name counts as "no document is relevant".

        Where ``pydantic_program_mode`` is not the default, LlamaIndex's own program of that mode is used.

        Args:
            output_cls: The class.
            prompt: What is asked.
            llm_kwargs: Arguments of `chat` (`complete` where a member has no chat template). Default none.
            **prompt_args: What the prompt's variables stand for.

        Raises:
            AnswerError: The answer was cut short, by a ``max_tokens`` that is too small for any object of the class, by
                a stop string, or by a member's context.
            GrammarError: The class's schema asks for something that cannot be enforced.
            ValidationError: A validator of the class refuses what its schema allows.
        """
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            made: Model = super().structured_predict(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
            return made
        _dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        asked = self._asked(output_cls, llm_kwargs)
        response: Response
        if self.metadata.is_chat_model:
            response = self.chat(self._asking(output_cls, prompt, prompt_args), **asked)
        else:
            response = self.complete(self._asking_in_text(output_cls, prompt, prompt_args), formatted=True, **asked)
        return self._finished(output_cls, response)

    async def astructured_predict(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Model:
        """`structured_predict` without blocking the event loop."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            made: Model = await super().astructured_predict(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
            return made
        _dispatcher.event(
            LLMStructuredPredictStartEvent(output_cls=output_cls, template=prompt, template_args=prompt_args)
        )
        asked = self._asked(output_cls, llm_kwargs)
        response: Response
        if self.metadata.is_chat_model:
            response = await self.achat(self._asking(output_cls, prompt, prompt_args), **asked)
        else:
            text = self._asking_in_text(output_cls, prompt, prompt_args)
            response = await self.acomplete(text, formatted=True, **asked)
        return self._finished(output_cls, response)

    def _finished(self, output_cls: type[Model], response: Response) -> Model:
        try:
            result = read_object(output_cls, response)
        except (AnswerError, ValidationError) as error:
            if self.raise_on_structured_prediction_failure:
                raise
            # LlamaIndex's rerankers look for the error's text in place of an object, against their own annotations.
            return cast(Model, str(error))
        _dispatcher.event(LLMStructuredPredictEndEvent(output=result))
        return result

    def _structured_stream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> Generator[Any, None, None]:
        """What `stream_structured_predict` yields: the object as far as it is written, and at the end the whole one."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return super()._structured_stream_call(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
        return self._objects(output_cls, prompt, self._asked(output_cls, llm_kwargs), prompt_args)

    def _objects(
        self, output_cls: type[Model], prompt: PromptTemplate, asked: Mapping[str, Any], prompt_args: Mapping[str, Any]
    ) -> Generator[Model | FlexibleModel, None, None]:
        reader = ObjectReader(output_cls)
        if self.metadata.is_chat_model:
            for response in self.stream_chat(self._asking(output_cls, prompt, prompt_args), **asked):
                yield from reader.read(response)
        else:
            text = self._asking_in_text(output_cls, prompt, prompt_args)
            for continued in self.stream_complete(text, formatted=True, **asked):
                yield from reader.read(continued)

    async def _structured_astream_call(
        self,
        output_cls: type[Model],
        prompt: PromptTemplate,
        llm_kwargs: dict[str, Any] | None = None,
        **prompt_args: Any,
    ) -> AsyncGenerator[Any, None]:
        """`_structured_stream_call` for event loops."""
        if self.pydantic_program_mode != PydanticProgramMode.DEFAULT:
            return await super()._structured_astream_call(output_cls, prompt, dict(llm_kwargs or {}), **prompt_args)
        return self._aobjects(output_cls, prompt, self._asked(output_cls, llm_kwargs), prompt_args)

    async def _aobjects(
        self, output_cls: type[Model], prompt: PromptTemplate, asked: Mapping[str, Any], prompt_args: Mapping[str, Any]
    ) -> AsyncGenerator[Model | FlexibleModel, None]:
        reader = ObjectReader(output_cls)
        if self.metadata.is_chat_model:
            async for response in await self.astream_chat(self._asking(output_cls, prompt, prompt_args), **asked):
                for value in reader.read(response):
                    yield value
        else:
            text = self._asking_in_text(output_cls, prompt, prompt_args)
            async for continued in await self.astream_complete(text, formatted=True, **asked):
                for value in reader.read(continued):
                    yield value

    def _asked(self, output_cls: type[Model], llm_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
        asked = ask_for(output_cls, llm_kwargs, self.close_structures)
        if self.metadata.is_chat_model and self.enable_thinking is None:
            # The object is the whole answer: templates that can are told to leave no room for thoughts before it.
            asked.setdefault("enable_thinking", False)
        return asked

    def _asking(
        self, output_cls: type[Model], prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]
    ) -> list[ChatMessage]:
        return with_schema(self._extend_messages(prompt.format_messages(llm=self, **prompt_args)), output_cls)

    def _asking_in_text(
        self, output_cls: type[Model], prompt: BasePromptTemplate, prompt_args: Mapping[str, Any]
    ) -> str:
        return f"{self._get_prompt(prompt, **prompt_args)}\n\n{told(output_cls)}\n"
