"""`ChatGaC`: an ensemble as a LangChain chat model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from langchain_core.callbacks import AsyncCallbackManagerForLLMRun, CallbackManagerForLLMRun
from langchain_core.language_models import LanguageModelInput
from langchain_core.language_models.base import LangSmithParams
from langchain_core.language_models.model_profile import ModelProfile
from langchain_core.messages import AIMessage, BaseMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult
from langchain_core.runnables import Runnable
from langchain_core.tools import BaseTool

from gac_core import Conversation, RequestError, SamplingParams, UnknownArgumentError, quote
from gac_langchain import answers, convert
from gac_langchain.configured import ConfiguredChat
from gac_langchain.settings import CALL_NAMES, request_id_of
from gac_langchain.structured import structured

_OF_CALLS = ("model", "request_id")
_TOOL_ARGUMENTS = ("tools", "tool_choice", "parallel_tool_calls", "response_format", "strict", "enable_thinking")


class ChatGaC(ConfiguredChat):
    """Chat with an ensemble of open models; each member sees the conversation in its own chat template.

    Setup:
        Install the package with its extra ``langchain``. Models are folders, or names on a model hub.

        .. code-block:: bash

            pip install 'gac-ensemble[langchain]'

    Instantiate:
        Models, or a loaded ensemble, or a YAML file; without any, the file that ``GAC_CONFIG`` names. Models of the
        same settings share one loaded ensemble, and so do copies.

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
        `gac_core.SamplingParams` may be given by call, by ``bind`` or as a field; a name that is not known is refused.
        The threshold may also come by ``config={"configurable": {"gac_threshold": 0.8}}``, which reaches every model in
        a chain or agent, by `gac_core.use_threshold`, or by ``chat.with_threshold(0.8)``; and the gate by
        ``gac_gate``, `gac_core.use_gate`, or ``chat.with_gate("model-b")``. ``model="NAME"`` asks one member alone,
        whatever the configuration says. ``timeout`` bounds the seconds of a call (``gac_timeout`` in a configuration).
        Errors and log records name the run's id, or the call's ``request_id``.

    Stream:
        .. code-block:: python

            for chunk in chat.stream("Who built the bridge?"):
                print(chunk.text, end="")

    Async:
        .. code-block:: python

            await chat.ainvoke("Who built the bridge?")
            async for chunk in chat.astream("Who built the bridge?"):
                print(chunk.text, end="")

        Cancelling a task or giving a stream up frees the engine.

    Tool calling:
        .. code-block:: python

            chat.bind_tools([get_weather], tool_choice="any").invoke("How is the weather?").tool_calls

        A grammar keeps every call to its tool's schema. A call that ``max_tokens`` cuts off is in
        ``invalid_tool_calls``.

    Structured output:
        .. code-block:: python

            chat.with_structured_output(Joke).invoke("Tell me a joke about cats.")

        The schema is enforced token by token (``method="json_schema"``, the default), and the members are told it in
        the system message. An answer that ``max_tokens`` cuts off is an error.

    Response metadata:
        ``finish_reason``, ``model_name``, ``logprobs`` if asked for, and under ``gac`` the settings in force
        (``threshold``, ``gate``, ``weights``, ``alignment``, ``commit``, ``temperature``, ``seed``), the means of
        ``confidence``, ``agreement`` and ``divergence`` over the answer (for each token with ``token_stats=True``), the
        steps, the share of them that was ensembled, drafted and accepted tokens, and what each member did
        (`gac_core.RequestStats`). Token counts are in ``usage_metadata``.
    """

    @property
    def _llm_type(self) -> str:
        return "gac-chat"

    @property
    def _identifying_params(self) -> dict[str, Any]:
        return self._identity()

    def _resolve_model_profile(self) -> ModelProfile | None:
        context = self._loaded.context_for(self._params(None, {}))
        profile: ModelProfile = {
            "max_output_tokens": self.max_tokens,
            "text_inputs": True,
            "text_outputs": True,
            "image_inputs": False,
            "audio_inputs": False,
            "video_inputs": False,
            "pdf_inputs": False,
            "tool_calling": True,
            "tool_choice": True,
            "structured_output": True,
        }
        if context is not None:
            profile["max_input_tokens"] = context
        return profile

    def __init__(self, **fields: Any) -> None:
        """Checks all fields, then loads the ensemble; see `EnsembleSettings`."""
        super().__init__(**fields)
        # The base class asks for the profile before there is an ensemble.
        if self.profile is None:
            self.profile = self._resolve_model_profile()

    def _get_ls_params(self, stop: list[str] | None = None, **kwargs: Any) -> LangSmithParams:
        params = self._params(stop, {name: value for name, value in kwargs.items() if name in CALL_NAMES})
        return LangSmithParams(
            ls_provider=answers.PROVIDER,
            ls_model_name=kwargs.get("model") or self.model_name,
            ls_model_type="chat",
            ls_temperature=params.temperature,
            ls_max_tokens=params.max_tokens,
            ls_stop=list(params.stop) or None,
        )

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Returns how long a conversation is for the member that reads most tokens in it, template and tools included.

        Args:
            messages: The conversation.
            tools: Tools that would be bound, in any of LangChain's forms. Default none.

        Raises:
            RequestError: A message or a tool cannot be told to the members.
        """
        return self._loaded.count_tokens(convert.to_conversation(messages, {"tools": tools}), self._params(None, {}))

    # ---- calls

    def _generate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        talk, params, name = self._asked(messages, stop, kwargs)
        message = answers.to_message(
            self._loaded.generate(talk, params, request_id=request_id_of(kwargs, run_manager)), name
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    async def _agenerate(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: AsyncCallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> ChatResult:
        talk, params, name = self._asked(messages, stop, kwargs)
        message = answers.to_message(
            await self._loaded.agenerate(talk, params, request_id=request_id_of(kwargs, run_manager)), name
        )
        return ChatResult(generations=[ChatGeneration(message=message)])

    def _stream(
        self,
        messages: list[BaseMessage],
        stop: list[str] | None = None,
        run_manager: CallbackManagerForLLMRun | None = None,
        **kwargs: Any,
    ) -> Iterator[ChatGenerationChunk]:
        talk, params, name = self._asked(messages, stop, kwargs)
        read = answers.ChunkReader(name)
        for part in self._loaded.stream(talk, params, request_id=request_id_of(kwargs, run_manager)):
            for chunk in read(part):
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
        talk, params, name = self._asked(messages, stop, kwargs)
        read = answers.ChunkReader(name)
        async for part in self._loaded.astream(talk, params, request_id=request_id_of(kwargs, run_manager)):
            for chunk in read(part):
                if run_manager:
                    await run_manager.on_llm_new_token(chunk.text, chunk=chunk)
                yield chunk

    def _asked(
        self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]
    ) -> tuple[Conversation, SamplingParams, str]:
        """What one call asks for: the conversation, the parameters, and the name of the model that answers."""
        unknown = set(kwargs) - CALL_NAMES - {*_TOOL_ARGUMENTS, *_OF_CALLS}
        if unknown:
            raise UnknownArgumentError(unknown, {*CALL_NAMES, *_TOOL_ARGUMENTS, *_OF_CALLS})
        overrides = {name: value for name, value in kwargs.items() if name in CALL_NAMES}
        grammar = convert.to_grammar(kwargs.get("response_format"))
        if grammar is not None:
            if overrides.get("grammar", self.grammar) is not None:
                raise RequestError("give a grammar or a response_format (structured output), and not both")
            overrides["grammar"] = grammar
        name = kwargs.get("model") or self.model_name
        if name != self.model_name:
            if name not in self._loaded.names:
                known = [self.model_name, *self._loaded.names]
                raise RequestError(f"there is no model {quote(name)}; models are: {', '.join(known)}")
            if overrides.get("gate", name) != name:
                raise RequestError(
                    f"model={quote(name)} asks one member alone; leave gate={quote(overrides['gate'])} out"
                )
            # One member alone is a gate that is always sure.
            overrides.update(gate=name, threshold=0.0)
        return convert.to_conversation(messages, kwargs), self._params(stop, overrides), name

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
            strict: Calls keep to their schema in any case; kept for the schemas that tools give.
            parallel_tool_calls: Whether one answer may hold several calls. Default True.
            **kwargs: Bound as they are: parameters, ``response_format``.

        Raises:
            RequestError: A tool or the choice has a form that is not known.
        """
        given = convert.to_tools(tools, strict)
        names = [tool.name for tool in convert.core_tools(given)]
        choice = convert.to_choice(tool_choice, names)
        extra: dict[str, Any] = {}
        if choice is not None and (given or choice != "required"):
            extra["tool_choice"] = choice
        if parallel_tool_calls is not None:
            extra["parallel_tool_calls"] = parallel_tool_calls
        return self.bind(tools=given, **extra, **kwargs)

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
            method: ``"json_schema"`` (default) enforces the schema on the answer; ``"function_calling"`` on a call that
                must be made; ``"json_mode"`` enforces JSON only.
            include_raw: Give ``{"raw": message, "parsed": value, "parsing_error": error}``. Default False.
            strict: As in `bind_tools`.
            **kwargs: Bound as they are.

        Raises:
            RequestError: The method is none of these.
        """
        return structured(self, schema, method, include_raw, strict, kwargs)
