"""Structured output for LlamaIndex: the arguments of a call whose answer is a pydantic object, and its parsing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole, TextBlock
from llama_index.core.bridge.pydantic import BaseModel, ValidationError
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index.core.types import Model

from gac_core import RequestError, StructuredOutput, read_json_answer
from gac_llamaindex.responses import is_last, partial_json

_logger = logging.getLogger(__name__)

Response = ChatResponse | CompletionResponse
# Arguments that LlamaIndex's own programs set, and remove from a caller's.
_OF_PROGRAMS = ("tool_required", "tool_choice", "allow_parallel_tool_calls")


def structured_output(output_cls: type[BaseModel], close: bool = False) -> StructuredOutput:
    """Returns the grammar and the instruction of a class.

    Args:
        output_cls: The class.
        close: Whether the object ends early where ``max_tokens`` would truncate it. Default False.

    Raises:
        GrammarError: The class's JSON schema cannot be enforced.
    """
    return StructuredOutput.of(output_cls.model_json_schema(), close)


def call_arguments(
    output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None, output: StructuredOutput
) -> dict[str, Any]:
    """Returns the arguments of a call whose answer is an object of a class.

    Args:
        output_cls: The class.
        llm_kwargs: The caller's arguments.
        output: As `structured_output` returns it.

    Raises:
        RequestError: The caller gives a grammar as well.
    """
    given = {key: value for key, value in (llm_kwargs or {}).items() if key not in _OF_PROGRAMS}
    if "grammar" in given:
        raise RequestError(
            f"structured_predict makes its grammar of {output_cls.__name__}; leave 'grammar' out of llm_kwargs"
        )
    return {**given, "grammar": output.grammar}


def with_instruction(messages: Sequence[ChatMessage], output: StructuredOutput) -> list[ChatMessage]:
    """Returns messages with the instruction at the end of the last one, or as a new one if that is not the user's."""
    if messages and messages[-1].role == MessageRole.USER:
        last = messages[-1]
        block = TextBlock(text=f"\n{output.instruction}")
        return [*messages[:-1], last.model_copy(update={"blocks": [*last.blocks, block]})]
    return [*messages, ChatMessage(role=MessageRole.USER, content=output.instruction)]


def read_object(output_cls: type[Model], response: Response) -> Model:
    """Returns the object of a finished answer; logs a warning if it was ended early.

    Raises:
        AnswerError: The answer ended before its JSON did.
        ValidationError: A validator of the class rejects a value that its schema allows.
    """
    reason = (response.raw or {}).get("finish_reason")
    values = read_json_answer(response_text(response), reason, f"the {output_cls.__name__}")
    if reason == "length":
        _logger.warning(
            "the %s was closed early to end within max_tokens: lists, strings and optional fields may be incomplete; "
            "raise max_tokens, or set close_structures=False to raise an error instead",
            output_cls.__name__,
        )
    return output_cls.model_validate(values)


@dataclass
class ObjectReader(Generic[Model]):
    """Makes the objects of one stream.

    Attributes:
        output_cls: The class of the objects.
    """

    output_cls: type[Model]

    def __post_init__(self) -> None:
        self._flexible = create_flexible_model(self.output_cls)
        self._values: Any = None

    def read(self, response: Response) -> Iterator[Model | FlexibleModel]:
        """Yields the object so far if the response has changed it, and the complete one at the end.

        An object that its class does not accept yet is a `FlexibleModel` with the same fields.

        Raises:
            AnswerError: The answer ended before its JSON did.
            ValidationError: A validator of the class rejects a value that its schema allows.
        """
        if is_last(response):
            yield read_object(self.output_cls, response)
            return
        values = partial_json(response_text(response))
        if isinstance(values, dict) and values != self._values:
            self._values = values
            try:
                yield self.output_cls.model_validate(values)
            except ValidationError:
                yield self._flexible.model_validate(values)


def response_text(response: Response) -> str:
    """Returns the text of a response, without reasoning."""
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""
