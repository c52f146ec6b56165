"""`RequestingLLM`: the requests that `GaCLLM`'s calls make of the ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, TypedDict, cast

from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.llms.llm import CompletionToPromptType, MessagesToPromptType

from gac_core import (
    CONVERSATION_ARGUMENTS,
    DOCUMENT_ARGUMENTS,
    AnyPrompt,
    CallArguments,
    Conversation,
    Message,
    Prompt,
    RequestError,
    SamplingParams,
    document_prompt,
    read_tool_choice,
    split_arguments,
    with_top_logprobs,
)
from gac_llamaindex.base import EnsembleLLM
from gac_llamaindex.messages import convert_messages, has_images
from gac_llamaindex.nodes import as_documents

_TALK_ARGUMENTS = CONVERSATION_ARGUMENTS | {"tool_format"}
_OTHER_ARGUMENTS = DOCUMENT_ARGUMENTS | {"request_id", "top_logprobs"}


class Request(TypedDict):
    """The arguments of a call of `gac_core.Ensemble`."""

    prompt: AnyPrompt
    params: SamplingParams
    request_id: str | None


class RequestingLLM(EnsembleLLM):
    """`EnsembleLLM` that converts the arguments of its calls."""

    def _sampling_params(self, overrides: Mapping[str, Any], **defaults: Any) -> SamplingParams:
        # None: decided by whether the user's own functions rendered the prompt.
        params = super()._sampling_params(overrides, **{"parse_special": bool(self.parse_special), **defaults})
        if params.n != 1:
            raise RequestError(
                f"n={params.n}: a response of LlamaIndex has one answer; leave n out, or call "
                "llm.ensemble.generate_choices"
            )
        return params

    def _call_params(self, arguments: CallArguments, rendered: bool) -> SamplingParams:
        """Returns the parameters of a call.

        Args:
            arguments: The call's arguments.
            rendered: Whether the user's own functions rendered the prompt, which may then hold control tokens.
        """
        special = rendered if self.parse_special is None else self.parse_special
        sampling = with_top_logprobs(arguments.sampling, arguments.other.get("top_logprobs"))
        return self._sampling_params(sampling, parse_special=special)

    def _chat_request(self, messages: Sequence[ChatMessage], given: Mapping[str, Any]) -> Request:
        """Returns the request of a conversation."""
        arguments = split_arguments(given, _TALK_ARGUMENTS, _OTHER_ARGUMENTS)
        params = self._call_params(arguments, rendered=self._has_own_prompts)
        tools = arguments.conversation.get("tools") or ()
        if self._has_own_prompts:
            if tools:
                raise RequestError("messages_to_prompt cannot describe tools; leave it out to use chat templates")
            if has_images(messages):
                raise RequestError("messages_to_prompt cannot show images; leave it out to use chat templates")
            text = cast(MessagesToPromptType, self.messages_to_prompt)(messages)
            return _request(text, params, arguments)
        self._require_templates(params)
        talk = self._conversation(convert_messages(messages), {**arguments.conversation, "tools": tools})
        return _request(talk, params, arguments)

    def _conversation(self, messages: Sequence[Message], given: Mapping[str, Any]) -> Conversation:
        """Returns a conversation; what the call does not give is as the fields say."""
        own: dict[str, Any] = {"tool_format": self.tool_format, "enable_thinking": self.enable_thinking}
        if self.parallel_tool_calls is not None:
            own["parallel_tool_calls"] = self.parallel_tool_calls
        values = {**own, **given}
        choice = values.pop("tool_choice", None)
        talk = Conversation(messages, **values)
        if choice is None and talk.tools:
            choice = self.tool_choice
        names = [tool.name for tool in talk.tools]
        return replace(talk, tool_choice=read_tool_choice(choice, names) or "auto")

    def _completion_request(self, prompt: str, formatted: bool, given: Mapping[str, Any]) -> Request:
        """Returns the request of a completion: one user message, or the prompt as text."""
        arguments = split_arguments(given, {"enable_thinking"}, _OTHER_ARGUMENTS)
        # LlamaIndex formats prompts by either function.
        rendered = self._has_own_completions or (formatted and self._has_own_prompts)
        params = self._call_params(arguments, rendered)
        if not formatted and self._completes_as_chat(params):
            return self._chat_request([ChatMessage(role=MessageRole.USER, content=prompt)], given)
        if arguments.conversation:
            raise RequestError("enable_thinking needs a chat template, but the prompt is sent as plain text")
        text = prompt if formatted else cast(CompletionToPromptType, self.completion_to_prompt)(prompt)
        return _request(text, params, arguments)

    def _completes_as_chat(self, params: SamplingParams) -> bool:
        if self.complete_as != "auto":
            return self.complete_as == "chat"
        return (
            not self._has_own_prompts
            and not self._has_own_completions
            and not self._ensemble.without_chat_template(params)
        )


def _request(prompt: Prompt, params: SamplingParams, arguments: CallArguments) -> Request:
    documents = as_documents(arguments.other.get("documents"))
    whole = document_prompt(prompt, {**arguments.other, "documents": documents})
    return Request(prompt=whole, params=params, request_id=arguments.other.get("request_id"))
