"""`ChatGaC`: an ensemble as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextvars import Context
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from gac_core import (
    SAMPLING_FIELDS,
    check_tool_choice,
    read_tool_choice,
    with_top_logprobs,
)
from gac_langchain import answers, convert
from gac_langchain.chat_request import ChatRequests, required_answer
from gac_langchain.choices import check_one_answer, llm_output
from gac_langchain.profile import model_profile
from gac_langchain.settings import request_id_of
from gac_langchain.structured import structured


class ChatGaC(ChatRequests):
    """Chat with an ensemble of open models; each member sees the conversation in its own chat template.

    Setup:
        Install the package with its extra ``langchain``. Models are folders, or names on a model hub.

        .. code-block:: bash

            pip install 'gac-ensemble[langchain]'

    Instantiate:
        From models, a loaded ensemble, or a YAML file; without any of them, from the file that ``GAC_CONFIG`` names.
        Models with the same settings share one loaded ensemble, and so do copies.

        .. code-block:: python

            from gac_langchain import ChatGaC

            chat = ChatGaC(models=["model-a", "model-b"], threshold=0.5, max_tokens=256)
            chat = ChatGaC(ensemble=ensemble)
            chat = ChatGaC.from_config("ensemble.yaml", temperature=0.7)

    Invoke:
        .. code-block:: python

            chat.invoke("Who built the bridge?")
            chat.invoke([("system", "Be brief."), ("human", "Who built the bridge?")], threshold=0.8)

        ``batch``, threads and tasks that call at the same time run as one batch. Every parameter of
        `gac_core.SamplingParams` may be given by call, by ``bind`` or as a field; unknown arguments are errors.
        ``config={"configurable": {"gac_threshold": 0.8}}`` sets the threshold of every model in a chain or agent; so do
        ``gac_gate``, ``gac_weights``, ``gac_combine``, ``gac_combine_documents``, ``gac_alignment``, ``gac_gate_rule``
        and ``gac_timeout`` for theirs, and other keys that begin with ``gac_`` are errors. `gac_core.use_threshold` and
        `gac_core.use_gate` set them for a context, ``chat.with_threshold(0.8)`` and ``chat.with_gate("model-b")`` for a
        copy. ``model="NAME"`` uses one member alone, whatever the configuration sets. ``timeout`` limits the seconds of
        a call. Errors and log records name the run's id, or the call's ``request_id``.

    Stream:
        .. code-block:: python

            for chunk in chat.stream("Who built the bridge?"):
                print(chunk.text, end="")

    Async:
        .. code-block:: python

            await chat.ainvoke("Who built the bridge?")
            async for chunk in chat.astream("Who built the bridge?"):
                print(chunk.text, end="")

        Cancelling a task or abandoning a stream frees the engine.

    Tool calling:
        .. code-block:: python

            chat.bind_tools([get_weather], tool_choice="any").invoke("How is the weather?").tool_calls

        A grammar enforces each tool's schema. A call that ``max_tokens`` truncates is in ``invalid_tool_calls``.

    Structured output:
        .. code-block:: python

            chat.with_structured_output(Joke).invoke("Tell me a joke about cats.")

        The schema is enforced token by token (``method="json_schema"``, the default) and described in the system
        message. An answer that ``max_tokens`` truncates is an error.

    Documents:
        Each document is read in a voice of its own (`gac_core.DocumentPrompt`), in chains by `create_voices_chain`.

        .. code-block:: python

            chat.invoke("{document} Who built the bridge?", documents=documents)
            chat.warm("{document}", documents)  # computes their KV caches

        ``documents`` may be LangChain's documents, `gac_core.Document`, strings or mappings, with scores in their
        metadata (``relevance_score``, else ``score``, or ``score_key="..."``). ``document_weights``, ``prior`` and
        ``place`` are fields of `gac_core.DocumentPrompt`. The content of the answer is a text block whose
        ``annotations`` are citations; ``document_shares`` and ``doubt`` are in its metadata.

    Response metadata:
        ``finish_reason``, ``model_name``, ``logprobs`` if requested (``logprobs=5``, or ``logprobs=True,
        top_logprobs=5``; streams have them in each chunk), and under ``gac`` the settings in force
        (`gac_core.EffectiveSettings`), the means of ``confidence``, ``agreement`` and ``divergence`` over the answer
        (for each token with ``token_stats=True``), the steps, the share of them that was ensembled, drafted and
        accepted tokens, members that failed (``dropped``), and the work of each member (`gac_core.RequestStats`).
        Token counts are in ``usage_metadata``.
    """

    @property
    def _llm_type(self) -> str:
        return "gac-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._identity()

    def _resolve_model_profile(self) -> ModelProfile | None:
        return model_profile(self._context(), self.max_tokens, bool(self._ensemble.vision_members))

    def __init__(self, **fields: Any) -> None:
        """Checks all fields, then loads the ensemble; see `EnsembleSettings`.

        ``top_logprobs=5`` is ``logprobs=5``, as by call.
        """
        check_tool_choice(fields.get("tool_choice"))
        super().__init__(**with_top_logprobs(fields, fields.pop("top_logprobs", None)))
        # The base class resolves the profile before the ensemble is loaded.
        if self.profile is None:
            self.profile = Context().run(self._resolve_model_profile)

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        given = {"stop": stop} if stop is not None else {}
        params = self._sampling_params({**given, **{n: value for n, value in kwargs.items() if n in SAMPLING_FIELDS}})
        return LangSmithParams(
            ls_provider=answers.PROVIDER,
            ls_model_name=kwargs.get("model") or self.model_name,
            ls_model_type="chat",
            ls_temperature=params.temperature,
            ls_max_tokens=params.max_tokens,
            ls_stop=list(params.stop) or None,
        )

    # ---- calls

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        asked = self._request(messages, stop, kwargs)
        request_id = request_id_of(kwargs, run_manager)
        outputs = self._ensemble.generate_choices(asked.prompt, asked.params, request_id=request_id)
        return answers.to_result([asked.check(output) for output in outputs], asked.model, asked.sources)

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        asked = self._request(messages, stop, kwargs)
        request_id = request_id_of(kwargs, run_manager)
        outputs = await self._ensemble.agenerate_choices(asked.prompt, asked.params, request_id=request_id)
        return answers.to_result([asked.check(output) for output in outputs], asked.model, asked.sources)

    def _combine_llm_outputs(self, llm_outputs: list[dict[str, Any] | None]) -> dict[str, Any]:
        usages = [each["token_usage"] for each in llm_outputs if each]
        return llm_output(usages, self.model_name) if usages else {}

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        asked = self._request(messages, stop, kwargs)
        check_one_answer(asked.params)
        to_chunks = answers.ChunkReader(asked.model, asked.sources)
        request_id = request_id_of(kwargs, run_manager)
        for part in self._ensemble.stream(asked.prompt, asked.params, request_id=request_id):
            if part.output is not None:
                asked.check(part.output)
            for chunk in to_chunks(part):
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
        asked = self._request(messages, stop, kwargs)
        check_one_answer(asked.params)
        to_chunks = answers.ChunkReader(asked.model, asked.sources)
        request_id = request_id_of(kwargs, run_manager)
        async for part in self._ensemble.astream(asked.prompt, asked.params, request_id=request_id):
            if part.output is not None:
                asked.check(part.output)
            for chunk in to_chunks(part):
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    # ---- tools and structured output

    def bind_tools(
        self,
        tools: Sequence[dict[str, Any] | type | Callable[..., Any] | BaseTool],
        *,
        tool_choice: str | dict[str, Any] | bool | None = None,
        strict: bool | None = None,
        parallel_tool_calls: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, AIMessage]:
        """Returns the model with tools that it may call.

        Args:
            tools: Functions, pydantic classes, `BaseTool`, or schemas.
            tool_choice: ``"auto"`` (default), ``"any"``, ``"required"`` or True: calls only; ``"none"``; a tool's name,
                as a string or in OpenAI's form.
            strict: Passed to LangChain's conversion of tools; schemas are enforced in any case.
            parallel_tool_calls: Whether one answer may have several calls. Default True.
            **kwargs: Other arguments of the calls, such as parameters and ``response_format``.

        Raises:
            RequestError: A tool or the choice has an unsupported form.
        """
        given = convert.to_tools(tools, strict)
        names = [tool.name for tool in convert.core_tools(given)]
        choice = read_tool_choice(tool_choice, names)
        extra: dict[str, Any] = {}
        if choice is not None and (given or choice != "required"):
            extra["tool_choice"] = choice
        if parallel_tool_calls is not None:
            extra["parallel_tool_calls"] = parallel_tool_calls
        must_be = required_answer(tools, choice, kwargs.get("response_format"))
        if must_be is not None:
            extra["must_be"] = must_be
        bound: Runnable[LanguageModelInput, AIMessage] = self.bind(tools=given, **extra, **kwargs)
        return bound

    def with_structured_output(
        self,
        schema: dict[str, Any] | type,
        *,
        method: Literal["json_schema", "function_calling", "json_mode"] = "json_schema",
        include_raw: bool = False,
        strict: bool | None = None,
        **kwargs: Any,
    ) -> Runnable[LanguageModelInput, Any]:
        """Returns a runnable whose answers are values of a schema.

        Args:
            schema: A pydantic class (v1 or v2), a TypedDict, or a JSON schema.
            method: ``"json_schema"`` (default) enforces the schema on the answer; ``"function_calling"`` on a required
                tool call; ``"json_mode"`` enforces JSON only.
            include_raw: Return ``{"raw": message, "parsed": value, "parsing_error": error}``. Default False.
            strict: As in `bind_tools`.
            **kwargs: Other arguments of the calls.

        Raises:
            RequestError: Unknown method.
        """
        return structured(self, schema, method, include_raw, strict, kwargs)
