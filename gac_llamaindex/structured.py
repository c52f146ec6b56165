"""Answers as objects of a pydantic class: the request that asks for one, and its answer read.

Knows no ensemble. The schema is enforced by the grammar; the models are told it as well, so that what they are led to
write is what they would have written.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Generic

from llama_index.core.base.llms.types import ChatMessage, ChatResponse, CompletionResponse, MessageRole, TextBlock
from llama_index.core.bridge.pydantic import BaseModel, ValidationError
from llama_index.core.program.utils import FlexibleModel, create_flexible_model
from llama_index.core.types import Model
from pydantic_core import from_json

from gac_core import AnswerError, Grammar, RequestError, tell_schema
from gac_llamaindex.responses import partial_json

_logger = logging.getLogger(__name__)

Response = ChatResponse | CompletionResponse
# What LlamaIndex's own programs set themselves, and take out of a caller's arguments.
_OF_PROGRAMS = ("tool_required", "tool_choice", "allow_parallel_tool_calls")


def ask_for(output_cls: type[BaseModel], llm_kwargs: Mapping[str, Any] | None, closes: bool) -> dict[str, Any]:
    """Returns the arguments of a call whose answer is an object of a class.

    Args:
        output_cls: The class.
        llm_kwargs: The caller's arguments.
        closes: Whether the object is closed within ``max_tokens``.

    Raises:
        RequestError: The caller gives a grammar of its own.
        GrammarError: The class has no JSON schema that can be enforced.
    """
    given = {key: value for key, value in (llm_kwargs or {}).items() if key not in _OF_PROGRAMS}
    if "grammar" in given:
        raise RequestError(
            f"structured_predict makes its grammar of {output_cls.__name__}; leave 'grammar' out of llm_kwargs"
        )
    return {**given, "grammar": Grammar.json_schema(output_cls.model_json_schema(), closes)}


def told(output_cls: type[BaseModel]) -> str:
    """Returns what the models are told of a class."""
    return tell_schema(output_cls.model_json_schema())


def with_schema(messages: Sequence[ChatMessage], output_cls: type[BaseModel]) -> list[ChatMessage]:
    """Returns messages whose last one tells of a class, as a new list; a message of its own where that is no user's."""
    told_block = TextBlock(text=f"\n{told(output_cls)}")
    if messages and messages[-1].role == MessageRole.USER:
        last = messages[-1]
        return [*messages[:-1], last.model_copy(update={"blocks": [*last.blocks, told_block]})]
    return [*messages, ChatMessage(role=MessageRole.USER, content=told(output_cls))]


def read_object(output_cls: type[Model], response: Response) -> Model:
    """Returns the object of a finished answer; logs a warning if it was closed early.

    Raises:
        AnswerError: The answer ended before its JSON did.
        ValidationError: The class refuses what its schema allows.
    """
    text = _text(response)
    reason = (response.raw or {}).get("finish_reason")
    try:
        values = from_json(text)
    except ValueError as error:
        raise AnswerError(
            f"the answer is no whole {output_cls.__name__}: it ended ({reason}) after {text[-40:]!r}; raise max_tokens "
            "and give no stop strings",
            text,
        ) from error
    if reason == "length":
        _logger.warning(
            "the %s was closed early to end within max_tokens: lists, strings and optional fields may be incomplete; "
            "raise max_tokens, or set close_structures=False to have an error instead",
            output_cls.__name__,
        )
    return output_cls.model_validate(values)


@dataclass
class ObjectReader(Generic[Model]):
    """Makes the objects of one stream.

    Attributes:
        output_cls: Their class.
    """

    output_cls: type[Model]

    def __post_init__(self) -> None:
        self._flexible = create_flexible_model(self.output_cls)
        self._values: Any = None

    def read(self, response: Response) -> Iterator[Model | FlexibleModel]:
        """Yields what a response adds: an object as far as it is written, or at the end the whole one.

        An object that its class does not accept yet is a `FlexibleModel` with the same fields.

        Raises:
            AnswerError: The answer ended before its JSON did.
            ValidationError: The class refuses what its schema allows.
        """
        if response.raw is not None:
            yield read_object(self.output_cls, response)
            return
        values = partial_json(_text(response))
        if isinstance(values, dict) and values != self._values:
            self._values = values
            try:
                yield self.output_cls.model_validate(values)
            except ValidationError:
                yield self._flexible.model_validate(values)


def _text(response: Response) -> str:
    return response.text if isinstance(response, CompletionResponse) else response.message.content or ""
