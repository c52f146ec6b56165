"""`ChatRequests`: the fields of conversations, and what a call of a chat model asks of the ensemble."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from langchain_core.language_models import LanguageModelInput
from langchain_core.messages import BaseMessage
from langchain_core.tools import StructuredTool
from pydantic import Field

from gac_core import (
    CONVERSATION_FIELDS,
    AnyPrompt,
    Conversation,
    Prompt,
    RequestError,
    RequestOutput,
    SamplingParams,
    check_tool_calls,
    check_tool_choice,
    quote,
    read_json_answer,
    split_arguments,
    with_top_logprobs,
)
from gac_langchain import convert
from gac_langchain.configured import ConfiguredChat
from gac_langchain.documents import DOCUMENT_OPTIONS, Source, asked_of_documents

_OTHER_ARGUMENTS = (
    *("model", "request_id", "response_format", "strict", "top_logprobs", "must_be"),
    *DOCUMENT_OPTIONS,
)
# The fields that a conversation without tools ignores.
_OF_TOOLS = ("tool_choice", "parallel_tool_calls")

MustBe = Literal["call", "json"]
"""What an answer must contain, whole: a tool call, or JSON where it calls no tool. See `ChatRequests._must_be`."""


@dataclass(frozen=True)
class ChatRequest:
    """What one call asks of the ensemble.

    Attributes:
        prompt: The conversation, with documents if it is answered from several.
        params: The parameters.
        model: The name of the model that answers.
        must_be: What the answer must contain; None: anything.
        sources: The documents by id; None without documents.
    """

    prompt: AnyPrompt
    params: SamplingParams
    model: str
    must_be: MustBe | None = None
    sources: Mapping[str, Source] | None = None

    def check(self, output: RequestOutput) -> RequestOutput:
        """Returns the answer.

        Raises:
            AnswerError: It lacks what it must contain, mostly because ``max_tokens`` has truncated it.
        """
        reason = f"{output.finish_reason.value}, max_tokens={self.params.max_tokens}"
        if self.must_be == "call":
            calls, invalid = output.tool_calls, output.invalid_tool_calls
            check_tool_calls(calls, invalid, text=output.text, finish_reason=reason, required=True)
        elif self.must_be == "json" and not output.tool_calls:
            check_tool_calls((), output.invalid_tool_calls, finish_reason=reason)
            read_json_answer(output.text, reason, "the structured answer")
        return output


def _field(name: str, **checks: Any) -> Any:
    return Field(**CONVERSATION_FIELDS[name].options(), **checks)


class ChatRequests(ConfiguredChat):
    """A chat model's conversation fields, and the requests of its calls."""

    tool_choice: str | bool | dict[str, Any] | None = _field("tool_choice")
    parallel_tool_calls: bool | None = _field("parallel_tool_calls", strict=True)
    enable_thinking: bool | None = _field("enable_thinking", strict=True)

    def _check_changes(self, changes: Mapping[str, Any]) -> None:
        super()._check_changes(changes)
        check_tool_choice(changes.get("tool_choice"))

    def _identity(self) -> dict[str, Any]:
        return {**super()._identity(), **{name: getattr(self, name) for name in CONVERSATION_FIELDS}}

    def get_num_tokens_from_messages(self, messages: list[BaseMessage], tools: Sequence[Any] | None = None) -> int:
        """Returns the tokens of a conversation, chat template and tools included, for the member that counts most.

        Args:
            messages: The conversation.
            tools: Tools that would be bound, in any of LangChain's forms. Default none.

        Raises:
            RequestError: A message or a tool has an unsupported form.
        """
        talk = convert.to_conversation(messages, self._with_defaults({"tools": tools}))
        return self._ensemble.count_tokens(talk, self._sampling_params({}))

    def _request(self, messages: list[BaseMessage], stop: list[str] | None, kwargs: Mapping[str, Any]) -> ChatRequest:
        """Returns the request of a call."""
        given = split_arguments(kwargs, other=_OTHER_ARGUMENTS)
        sampling = with_top_logprobs(given.sampling, given.other.get("top_logprobs"))
        if stop is not None:
            sampling = {"stop": stop, **sampling}
        output = convert.to_structured_output(given.other.get("response_format"), bool(given.conversation.get("tools")))
        if output is not None:
            if sampling.get("grammar", self.grammar) is not None:
                raise RequestError("grammar excludes response_format (structured output); give one of them")
            sampling["grammar"] = output.grammar
        name = given.other.get("model") or self.model_name
        if name != self.model_name:
            sampling.update(self._alone(name, sampling))
        talk = convert.to_conversation(messages, self._with_defaults(given.conversation), output)
        prompt, sources = asked_of_documents(talk, given.other)
        return ChatRequest(prompt, self._sampling_params(sampling), name, given.other.get("must_be"), sources)

    def _prompted(self, prompt: LanguageModelInput, kwargs: Mapping[str, Any]) -> tuple[Prompt, SamplingParams]:
        asked = self._request(self._convert_input(prompt).to_messages(), None, kwargs)
        assert isinstance(asked.prompt, Conversation)
        return asked.prompt, asked.params

    def _with_defaults(self, given: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a call's fields of its conversation, with this model's own where it gives none."""
        own = {name: getattr(self, name) for name in CONVERSATION_FIELDS if given.get("tools") or name not in _OF_TOOLS}
        return {**own, **{name: value for name, value in given.items() if value is not None}}

    def _alone(self, name: str, sampling: Mapping[str, Any]) -> dict[str, Any]:
        """Returns the parameters that let one member answer alone: as a gate at a threshold of 0."""
        if name not in self._ensemble.names:
            known = [self.model_name, *self._ensemble.names]
            raise RequestError(f"unknown model {quote(name)}; models are: {', '.join(known)}")
        if sampling.get("gate", name) != name:
            raise RequestError(f"model={quote(name)} uses one member alone; leave gate={quote(sampling['gate'])} out")
        if sampling.get("weights") is not None:
            raise RequestError(f"model={quote(name)} uses one member alone; leave weights out")
        return {"gate": name, "threshold": 0.0, "weights": None}


def required_answer(tools: Sequence[Any], choice: str | None, response_format: Any) -> MustBe | None:
    """Returns what an answer must contain by what is bound to its model.

    LangChain's agents repeat a question whose answer has no call of the tool that stands for a structured answer, and
    give up on one whose JSON is truncated without the reason. Such tools have no function to run.

    Args:
        tools: The tools, in any of LangChain's forms.
        choice: The choice among them, as `gac_core.read_tool_choice` returns it.
        response_format: The response format, in OpenAI's form; None without one.
    """
    of_answers = [tool for tool in tools if isinstance(tool, StructuredTool) and not (tool.func or tool.coroutine)]
    if of_answers and choice not in (None, "auto", "none"):
        return "call"
    return "json" if convert.to_structured_output(response_format, bool(tools)) is not None else None
