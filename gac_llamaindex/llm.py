"""`GaCLLM`: an ensemble as a LlamaIndex LLM, with native async methods, tools and structured output."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Self

from llama_index.core.base.llms.types import (
    ChatMessage,
    ChatResponse,
    ChatResponseAsyncGen,
    ChatResponseGen,
    CompletionResponse,
    CompletionResponseAsyncGen,
    CompletionResponseGen,
    MessageRole,
)
from llama_index.core.llms.callbacks import llm_chat_callback, llm_completion_callback
from llama_index.core.llms.llm import ToolSelection

from gac_core import Grammar
from gac_llamaindex.messages import openai_tools
from gac_llamaindex.predict import PredictingLLM
from gac_llamaindex.responses import (
    ChatReader,
    CompletionReader,
    aread_stream,
    chat_response,
    check_calls,
    completion_response,
    read_stream,
    tool_selections,
)

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool


class GaCLLM(PredictingLLM):
    """An ensemble for LlamaIndex.

    Models with the same settings share one loaded ensemble. Without ``models``, ``config`` and ``ensemble`` the
    environment variable ``GAC_CONFIG`` names the configuration.

    Args:
        models: Names on a model hub, folders, mappings or `gac_core.MemberConfig`; or
        config: a `gac_core.EnsembleConfig`, a mapping of its fields, or the path of a YAML file; or
        ensemble: a loaded `gac_core.Ensemble`, which may be shared.
        weights: One per member, or by name. Like ``alignment``, ``combine``, ``combine_documents`` and ``gate_rule``,
            it configures the ensemble that is loaded from ``models``, and is a default of the calls beside ``config``
            and ``ensemble``.
        dtype: For example ``"float32"``; default as stored. This and the other settings of the ensemble go with
            ``models`` and have the defaults of `gac_core.EnsembleConfig` and `gac_core.MemberConfig`: ``device``,
            ``device_map``, ``quantization``, ``commit``, ``max_batch_size``, ``max_queue``, ``prefill_tokens``,
            ``prefill_seconds``, ``cache_gib``, ``document_cache_gib``, ``deterministic``, ``stuck_after``,
            ``on_member_failure``, ``min_members``, ``gate_must_live``, ``forward_timeout``, ``executor``,
            ``ray_address``, ``devices``, ``progress``, ``calibration``, ``absence``.
        tool_format: As in `gac_core.Conversation`; calls may override it.
        enable_thinking: Likewise.
        close_structures: Whether structured answers end early, as valid JSON, where ``max_tokens`` would truncate them;
            see `structured_predict`. Default True.
        raise_on_structured_prediction_failure: False: `structured_predict` returns an error's text in place of an
            object; see there. Default True.
        complete_as: ``"chat"``, ``"text"`` or ``"auto"`` (default); see `complete`.
        parse_special: Whether control tokens that a prompt spells out, such as ``<|im_end|>``, are read as such.
            Default None: only in prompts that ``messages_to_prompt`` or ``completion_to_prompt`` has rendered, if you
            gave one; remove them from user input there. Set True where another template of yours, such as
            ``query_wrapper_prompt``, contains control tokens.
        **fields: Defaults of `gac_core.SamplingParams` (all but ``n``: a response has one answer), by
            name, which each call may override; and fields of every LlamaIndex LLM, such as ``system_prompt`` and
            ``callback_manager``.

    Pickles keep all settings, and functions such as ``messages_to_prompt`` by name, but not callbacks and rate
    limiters. Unpickling in another process loads the members again.

    Raises:
        RequestError: A default of a request's parameters is wrong.
        ConfigError: Another setting is wrong.
        UnknownArgumentError: Unknown field.
        ModelLoadError: A model cannot be loaded.

    Example:
        >>> llm = GaCLLM(models=["model-a", "model-b"], threshold=0.5)  # doctest: +SKIP
        >>> llm.complete("What is the capital of France?", max_tokens=5).text  # doctest: +SKIP
    """

    def with_grammar(self, grammar: Grammar | None) -> Self:
        """Returns a copy whose answers have a form, on the same loaded ensemble.

        For engines that read a form out of the model's text and pass no arguments on, such as evaluators and selectors.
        Structured answers and calls with a grammar of their own are as without it; answers may call
        tools instead.

        Args:
            grammar: The form of the whole answer; None: any.
        """
        return self.model_copy(update={"grammar": grammar})

    # ---- chat

    @llm_chat_callback()
    def chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """Answers a conversation.

        Args:
            messages: The conversation.
            **kwargs: Fields of `gac_core.SamplingParams`; ``request_id`` as in `gac_core.Ensemble.generate`; ``tools``
                (in OpenAI's form), ``tool_choice``, ``parallel_tool_calls``, ``tool_format`` and ``enable_thinking`` as
                in `gac_core.Conversation`; ``documents`` (also nodes), ``document_weights``, ``prior`` and ``place`` as
                in `gac_core.DocumentPrompt`.

        Raises:
            UnknownArgumentError: Unknown keyword argument.
            RequestError: A message or an argument is wrong.
        """
        return chat_response(self._ensemble.generate(**self._chat_request(messages, kwargs)))

    @llm_chat_callback()
    async def achat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponse:
        """`chat` without blocking the event loop; cancelling it frees the engine."""
        return chat_response(await self._ensemble.agenerate(**self._chat_request(messages, kwargs)))

    @llm_chat_callback()
    def stream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseGen:
        """Streams the answer; each response has the text so far and the new part. Arguments as in `chat`."""
        chunks = self._ensemble.stream(**self._chat_request(messages, kwargs))
        return read_stream(ChatReader().read, chunks)

    @llm_chat_callback()
    async def astream_chat(self, messages: Sequence[ChatMessage], **kwargs: Any) -> ChatResponseAsyncGen:
        """`stream_chat` for event loops."""
        chunks = self._ensemble.astream(**self._chat_request(messages, kwargs))
        return aread_stream(ChatReader().read, chunks)

    # ---- completion

    @llm_completion_callback()
    def complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """Answers a prompt: as one user message, or as a text to continue.

        With ``complete_as="chat"`` the prompt is sent as one user message, through each member's own chat template;
        with ``"text"`` it is continued unchanged, after ``completion_to_prompt``. ``"auto"`` (default) is ``"chat"``
        where every participating member has a chat template and neither ``completion_to_prompt`` nor
        ``messages_to_prompt`` is given. Reasoning is not part of the text; it is in ``additional_kwargs["thinking"]``.

        Args:
            prompt: The prompt.
            formatted: Whether it is complete text, which is continued unchanged whatever ``complete_as`` is. Default
                False.
            **kwargs: Fields of `gac_core.SamplingParams`, ``request_id``, ``enable_thinking`` where a template is
                applied, and arguments about documents as in `chat`.

        Raises:
            UnknownArgumentError: Unknown keyword argument.
            RequestError: The prompt or an argument is wrong.
        """
        return completion_response(self._ensemble.generate(**self._completion_request(prompt, formatted, kwargs)))

    @llm_completion_callback()
    async def acomplete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponse:
        """`complete` without blocking the event loop; cancelling it frees the engine."""
        return completion_response(
            await self._ensemble.agenerate(**self._completion_request(prompt, formatted, kwargs))
        )

    @llm_completion_callback()
    def stream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseGen:
        """Streams the answer to a prompt; each response has the text so far and the new part. As `complete`."""
        chunks = self._ensemble.stream(**self._completion_request(prompt, formatted, kwargs))
        return read_stream(CompletionReader().read, chunks)

    @llm_completion_callback()
    async def astream_complete(self, prompt: str, formatted: bool = False, **kwargs: Any) -> CompletionResponseAsyncGen:
        """`stream_complete` for event loops."""
        chunks = self._ensemble.astream(**self._completion_request(prompt, formatted, kwargs))
        return aread_stream(CompletionReader().read, chunks)

    # ---- tools

    def _prepare_chat_with_tools(
        self,
        tools: Sequence[BaseTool],
        user_msg: str | ChatMessage | None = None,
        chat_history: list[ChatMessage] | None = None,
        verbose: bool = False,
        allow_parallel_tool_calls: bool = False,
        tool_required: bool = False,
        tool_choice: str | Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """Returns the arguments of `chat`; a grammar enforces the tools' schemas.

        ``tool_choice`` applies before ``tool_required``, and both before the field ``tool_choice``. An argument
        ``parallel_tool_calls`` applies before the field of this name, and both before ``allow_parallel_tool_calls``,
        which LlamaIndex passes in any case.
        """
        messages = list(chat_history or ())
        if isinstance(user_msg, str):
            user_msg = ChatMessage(role=MessageRole.USER, content=user_msg)
        if user_msg is not None:
            messages.append(user_msg)
        choice = tool_choice if tool_choice or not tool_required else "required"
        arguments = {**kwargs, "messages": messages, "tools": openai_tools(tools), "tool_choice": choice}
        if self.parallel_tool_calls is None:
            arguments.setdefault("parallel_tool_calls", allow_parallel_tool_calls)
        return arguments

    def _validate_chat_with_tools_response(
        self,
        response: ChatResponse,
        tools: Sequence[BaseTool],
        allow_parallel_tool_calls: bool = False,
        **kwargs: Any,
    ) -> ChatResponse:
        """Raises an `AnswerError` where all calls are malformed; the grammar ensures everything else."""
        check_calls(response)
        return response

    def get_tool_calls_from_response(
        self, response: ChatResponse, error_on_no_tool_call: bool = True, **kwargs: Any
    ) -> list[ToolSelection]:
        """Returns the tool calls of a response; while it streams, with the arguments so far.

        Args:
            response: The response.
            error_on_no_tool_call: Whether an answer without calls is an error. Default True.
            **kwargs: Ignored; LlamaIndex's interface has them.

        Raises:
            AnswerError: There is no call and one was required, or all calls are malformed.
        """
        return tool_selections(response, error_on_no_tool_call)
