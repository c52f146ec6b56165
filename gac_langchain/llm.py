"""`GaCLLM`: an ensemble as a LangChain text model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator, Mapping
from dataclasses import replace
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, BaseRunManager, CallbackManagerForLLMRun
from langchain_core.language_models import BaseLLM, LanguageModelInput
from langchain_core.outputs import Generation, GenerationChunk, LLMResult
from langchain_core.prompt_values import ChatPromptValue, PromptValue
from langchain_core.runnables import Runnable, RunnableConfig
from pydantic import PrivateAttr

from gac_core import (
    AnyPrompt,
    OutputChunk,
    Prompt,
    RequestError,
    RequestOutput,
    SamplingParams,
    as_logprobs,
    as_metadata,
    split_arguments,
)
from gac_langchain.answers import usage
from gac_langchain.choices import agenerate_answers, check_one_answer, generate_answers, llm_output, token_usage
from gac_langchain.convert import to_messages
from gac_langchain.documents import DOCUMENT_OPTIONS, asked_of_documents
from gac_langchain.settings import EnsembleSettings, request_id_of

# Arguments of LangChain's `generate` that concern the run, not the model.
_OF_RUNS = ("tags", "metadata", "run_name", "run_id", "request_id")


class GaCLLM(EnsembleSettings, BaseLLM):
    """Continue texts with an ensemble of open models; no chat template is applied. For conversations: `ChatGaC`.

    Setup:
        Install the package with its extra ``langchain``. Models are folders, or names on a model hub.

        .. code-block:: bash

            pip install 'gac-ensemble[langchain]'

    Instantiate:
        From models, a loaded ensemble, or a YAML file; without any of them, from the file that ``GAC_CONFIG`` names.
        Models with the same settings share one loaded ensemble, also with `ChatGaC`.

        .. code-block:: python

            from gac_langchain import GaCLLM

            llm = GaCLLM(models=["model-a", "model-b"], threshold=0.5, max_tokens=256)
            llm = GaCLLM(ensemble=ensemble)
            llm = GaCLLM.from_config("ensemble.yaml", temperature=0.7)

    Invoke:
        Every parameter of `gac_core.SamplingParams` may be given by call, by ``bind`` or as a field; unknown arguments
        are errors. Run configurations, contexts and copies set parameters as in `ChatGaC`.

        .. code-block:: python

            llm.invoke("The capital of France is", threshold=0.8, max_tokens=5)
            llm.batch(["The capital of France is", "The capital of Peru is"])  # one batch of the engine

        Control tokens that the text spells out, such as ``<|im_end|>``, are encoded as ordinary text. For texts that
        contain control tokens on purpose, for example because your own code has rendered a chat template, set
        ``parse_special=True``, as a field or by call, and remove them from user input.

    Stream:
        .. code-block:: python

            for piece in llm.stream("The capital of France is"):
                print(piece, end="")

    Async:
        .. code-block:: python

            await llm.ainvoke("The capital of France is")
            async for piece in llm.astream("The capital of France is"):
                print(piece, end="")

    Structured output:
        .. code-block:: python

            llm.invoke("Yes or no? ", grammar=gac_core.Grammar.choices(["yes", "no"]))

    Documents:
        ``llm.invoke("{document} Who built the bridge?", documents=documents)``, as in `ChatGaC`.

    Response metadata:
        ``llm.generate([...]).generations[0][0].generation_info`` has the entries of `ChatGaC`'s ``response_metadata``,
        and the token counts under ``usage``. With ``n=3`` there are three generations for each text; ``llm_output`` has
        the token counts of all of them together.
    """

    @property
    def _llm_type(self) -> str:
        return "gac"

    # The documents of a call, in the copy that answers it: part of the key of LangChain's cache.
    _documents: Mapping[str, Any] = PrivateAttr(default_factory=dict)

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return {**self._identity(), **self._documents}

    # ---- calls, with parameters from the run's configuration

    def invoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        """Continues a text; ``config={"configurable": {...}}`` may set parameters, as in `ChatGaC`."""
        return super().invoke(input, config, **self._configured(config, kwargs))

    async def ainvoke(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> str:
        """`invoke` for event loops."""
        return await super().ainvoke(input, config, **self._configured(config, kwargs))

    def stream(self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any) -> Iterator[str]:
        """Streams a continuation; configuration as in `invoke`."""
        return super().stream(input, config, **self._configured(config, kwargs))

    async def astream(
        self, input: LanguageModelInput, config: RunnableConfig | None = None, **kwargs: Any
    ) -> AsyncIterator[str]:
        """`stream` for event loops."""
        async for piece in super().astream(input, config, **self._configured(config, kwargs)):
            yield piece

    def batch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """Continues several texts as one batch.

        Args:
            inputs: The texts.
            config: One configuration, or one for each.
            return_exceptions: Return the error of a text in its place. Default False: the first error is raised and
                cancels the others.
            **kwargs: As in `invoke`.
        """
        shared = self._shared(config, kwargs)
        if shared is None or return_exceptions:
            # Each text is a run of its own; the engine batches requests that arrive together.
            configs = self._concurrent(config, len(inputs))
            return Runnable.batch(self, inputs, configs, return_exceptions=return_exceptions, **kwargs)
        return super().batch(inputs, config, **shared)

    async def abatch(
        self,
        inputs: list[LanguageModelInput],
        config: RunnableConfig | list[RunnableConfig] | None = None,
        *,
        return_exceptions: bool = False,
        **kwargs: Any,
    ) -> list[str]:
        """`batch` for event loops."""
        shared = self._shared(config, kwargs)
        if shared is None or return_exceptions:
            configs = self._concurrent(config, len(inputs))
            return await Runnable.abatch(self, inputs, configs, return_exceptions=return_exceptions, **kwargs)
        return await super().abatch(inputs, config, **shared)

    def generate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """Continues texts, as `batch` does, and returns them with their metadata; arguments as in `invoke`."""
        model, rest = self._with_arguments(kwargs)
        return super(GaCLLM, model).generate(prompts, stop, callbacks, **rest)

    async def agenerate(
        self, prompts: list[str], stop: list[str] | None = None, callbacks: Any = None, **kwargs: Any
    ) -> LLMResult:
        """`generate` for event loops."""
        model, rest = self._with_arguments(kwargs)
        return await super(GaCLLM, model).agenerate(prompts, stop, callbacks, **rest)

    def _with_arguments(self, kwargs: dict[str, Any]) -> tuple[GaCLLM, dict[str, Any]]:
        """Returns a copy with a call's parameters as its fields, since LangChain's cache key has fields only."""
        given = split_arguments(kwargs, conversation=(), other=(*_OF_RUNS, *DOCUMENT_OPTIONS))
        params = self._sampling_params(given.sampling)
        model = self.model_copy(update={name: getattr(params, name) for name in given.sampling})
        model._documents = {name: value for name, value in given.other.items() if name in DOCUMENT_OPTIONS}
        return model, dict(given.other)

    def _shared(
        self, config: RunnableConfig | list[RunnableConfig] | None, kwargs: dict[str, Any]
    ) -> dict[str, Any] | None:
        """Returns the arguments of all runs of a batch; None where their configurations set different ones."""
        configs = config if isinstance(config, list) else [config]
        arguments = [self._configured(each, kwargs) for each in configs] or [kwargs]
        return arguments[0] if all(each == arguments[0] for each in arguments) else None

    def _convert_input(self, model_input: LanguageModelInput) -> PromptValue:
        value = super()._convert_input(model_input)
        # LangChain would drop content that is not text.
        if isinstance(value, ChatPromptValue) and any(message.images for message in to_messages(value.messages)):
            raise RequestError("GaCLLM reads prompts of text: a message has an image; use ChatGaC")
        return value

    def _prompted(self, prompt: LanguageModelInput, kwargs: Mapping[str, Any]) -> tuple[Prompt, SamplingParams]:
        return self._convert_input(prompt).to_string(), self._call_params(None, kwargs)

    def _call_params(self, stop: list[str] | None, given: Mapping[str, Any]) -> SamplingParams:
        return self._sampling_params(given if stop is None else {"stop": stop, **given})

    def _generate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        asked, given = _split_documents(prompts, kwargs)
        given, ids = _split_ids(prompts, given, run_manager)
        return self._result(generate_answers(self._ensemble, asked, self._call_params(stop, given), ids))

    async def _agenerate(
        self,
        prompts: list[str],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> LLMResult:
        asked, given = _split_documents(prompts, kwargs)
        given, ids = _split_ids(prompts, given, run_manager)
        return self._result(await agenerate_answers(self._ensemble, asked, self._call_params(stop, given), ids))

    def _result(self, answers: list[list[RequestOutput]]) -> LLMResult:
        return LLMResult(
            generations=[[Generation(text=o.text, generation_info=_info(o)) for o in outputs] for outputs in answers],
            llm_output=llm_output([token_usage(outputs) for outputs in answers], self.model_name),
        )

    def _stream(
        self,
        prompt: str,
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[GenerationChunk]:
        asked, given = _split_documents([prompt], kwargs)
        given, ids = _split_ids([prompt], given, run_manager)
        params = self._call_params(stop, given)
        check_one_answer(params)
        for part in self._ensemble.stream(asked[0], params, request_id=ids[0]):
            if part.is_silent:
                continue
            chunk = _chunk(part)
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
        asked, given = _split_documents([prompt], kwargs)
        given, ids = _split_ids([prompt], given, run_manager)
        params = self._call_params(stop, given)
        check_one_answer(params)
        async for part in self._ensemble.astream(asked[0], params, request_id=ids[0]):
            if part.is_silent:
                continue
            chunk = _chunk(part)
            if run_manager:
                await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
            yield chunk


def _split_documents(prompts: list[str], kwargs: Mapping[str, Any]) -> tuple[list[AnyPrompt], dict[str, Any]]:
    """Returns what a call asks of each prompt, with its documents if it has any, and its other arguments."""
    rest = {name: value for name, value in kwargs.items() if name not in DOCUMENT_OPTIONS}
    return [asked_of_documents(prompt, kwargs)[0] for prompt in prompts], rest


def _split_ids(
    prompts: list[str], kwargs: dict[str, Any], run_manager: BaseRunManager | None
) -> tuple[dict[str, Any], list[str | None]]:
    """Returns a call's parameters and the id of each of its requests: the call's or run's, with a number if several."""
    given = {name: value for name, value in kwargs.items() if name != "request_id"}
    call = request_id_of(kwargs, run_manager)
    if len(prompts) == 1 or not isinstance(call, str):
        return given, [call] * len(prompts)
    return given, [f"{call}/{place}" for place in range(len(prompts))]


def _chunk(part: OutputChunk) -> GenerationChunk:
    # Sums of chunks have all log-probabilities, so that each is in one chunk.
    info = {} if part.output is None else _info(replace(part.output, logprobs=None))
    if part.logprobs:
        info["logprobs"] = as_logprobs(part.logprobs)
    return GenerationChunk(text=part.text, generation_info=info or None)


def _info(output: RequestOutput) -> dict[str, Any]:
    return {**as_metadata(output), "usage": usage(output)}
