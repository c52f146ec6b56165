"""`GaCLLM`: an ensemble as a LangChain text model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM
from langchain_core.outputs import Generation, GenerationChunk, LLMResult

from gac_core import OutputChunk, RequestOutput, as_metadata, fold
from gac_langchain.settings import EnsembleSettings


class GaCLLM(EnsembleSettings, BaseLLM):
    """Text completion by an ensemble; all prompts of one call run as one batch.

    Example:
        >>> llm = GaCLLM(models=["model-a", "model-b"])  # doctest: +SKIP
        >>> llm.invoke("The capital of France is", threshold=0.5, max_tokens=5)  # doctest: +SKIP
    """

    @property
    def _llm_type(self) -> str:
        return "gac"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._identity()

    def get_token_ids(self, text: str) -> list[int]:
        """Returns a text in the gate's ids."""
        return self._loaded.encode(text)

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        return _result(self._loaded.generate_batch(prompts, self._params(stop, kwargs)))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        params = self._params(stop, kwargs)
        return _result(await asyncio.gather(*(self._loaded.agenerate(prompt, params) for prompt in prompts)))

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        for chunk in _chunks(self._loaded.stream(prompt, self._params(stop, kwargs))):
            if run_manager:
                run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk

    async def _astream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> AsyncIterator[GenerationChunk]:
        parts: list[OutputChunk] = []
        async for part in self._loaded.astream(prompt, self._params(stop, kwargs)):
            parts.append(part)
            chunk = _chunk(part, parts)
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def _chunks(stream: Iterator[OutputChunk]) -> Iterator[GenerationChunk]:
    parts: list[OutputChunk] = []
    for part in stream:
        parts.append(part)
        yield _chunk(part, parts)


def _chunk(part: OutputChunk, parts: list[OutputChunk]) -> GenerationChunk:
    info = None if part.output is None else _info(fold(parts))
    return GenerationChunk(text=part.text, generation_info=info)


def _info(output: RequestOutput) -> dict[str, Any]:
    usage = output.usage
    counts = {
        "input_tokens": usage.prompt_tokens,
        "output_tokens": usage.completion_tokens,
        "total_tokens": usage.total_tokens,
    }
    return {**as_metadata(output), "usage": counts}


def _result(outputs: list[RequestOutput]) -> LLMResult:
    return LLMResult(generations=[[Generation(text=o.text, generation_info=_info(o))] for o in outputs])
