"""Structured output: the grammar and the prompt of a schema, recursive schemas, and checks for truncated answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gac_core.chat.tools import InvalidToolCall, tell_schema
from gac_core.errors import AnswerError
from gac_core.grammar.grammar import Grammar
from gac_core.grammar.schema import is_recursive


@dataclass(frozen=True)
class StructuredOutput:
    """How an answer that must fit a JSON schema is requested.

    Attributes:
        grammar: Enforces the schema token by token.
        instruction: Describes the schema in the prompt, so that the models also see its names and descriptions.
    """

    grammar: Grammar
    instruction: str

    @classmethod
    def of(cls, schema: Mapping[str, Any], close: bool = False, tools: bool = False) -> StructuredOutput:
        """Returns the request for a schema.

        Args:
            schema: The JSON schema.
            close: As in `Grammar.json_schema`: end the JSON early where ``max_tokens`` would cut it. Default False.
            tools: Whether the answer may call tools instead. Default False.

        Raises:
            GrammarError: The schema cannot be enforced.
        """
        return cls(Grammar.json_schema(schema, close), tell_schema(schema, tools=tools))


def recursive_schema(model: object) -> dict[str, Any] | None:
    """Returns the JSON schema of a pydantic class that refers to itself; None for anything else.

    Frameworks drop or mangle the references of such schemas when they make tools of them.
    """
    make = getattr(model, "model_json_schema", None)
    if not isinstance(model, type) or not callable(make):
        return None
    schema: dict[str, Any] = make()
    return schema if is_recursive(schema) else None


def with_recursive_parameters(tool: dict[str, Any], model: object) -> dict[str, Any]:
    """Returns a tool in OpenAI's form with its own schema as parameters where that is recursive.

    Args:
        tool: ``{"type": "function", "function": {...}}``.
        model: The pydantic class of its arguments, or anything else.
    """
    schema = recursive_schema(model)
    return tool if schema is None else {**tool, "function": {**tool["function"], "parameters": schema}}


def read_json_answer(text: str, finish_reason: object, kind: str = "the answer") -> Any:
    """Returns the value of an answer that must be JSON.

    Args:
        text: The answer.
        finish_reason: Why it ended, for the error.
        kind: What it should be, for the error. Default ``"the answer"``.

    Raises:
        AnswerError: It ended before its JSON did.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise AnswerError(
            f"{kind} is not complete JSON: it ended ({_plain(finish_reason)}) after {text[-40:]!r}; raise max_tokens, "
            "and use no stop strings",
            text,
        ) from error


def check_tool_calls(
    calls: Sequence[object],
    invalid: Sequence[InvalidToolCall],
    *,
    text: str = "",
    finish_reason: object = None,
    required: bool = False,
) -> None:
    """Checks that an answer whose tool calls are all malformed does not pass for one without any.

    Args:
        calls: The valid calls of the answer.
        invalid: The malformed ones.
        text: The text of the answer, for the error. Default empty.
        finish_reason: Why it ended, for the error. Default unknown.
        required: Whether an answer without calls is an error. Default False.

    Raises:
        AnswerError: There are malformed calls only, or none where one is required.
    """
    if calls:
        return
    if invalid:
        first = invalid[0]
        called = "a tool call" if first.name is None else f"the call of tool {first.name!r}"
        ended = "" if finish_reason is None else f"; the answer ended: {_plain(finish_reason)}"
        raise AnswerError(
            f"{called} is malformed ({first.error}{ended}): {first.arguments[-80:]!r}; if it was truncated, "
            "raise max_tokens, and use no stop strings",
            first.arguments,
        )
    if required:
        ended = str(_plain(finish_reason))
        remedy = "to require a call, set tool_choice='required'; use no stop strings"
        if ended.startswith("length"):
            remedy = "raise max_tokens"
        raise AnswerError(f"the models called no tool: the answer ended ({ended}) after {text[-40:]!r}; {remedy}", text)


def _plain(finish_reason: object) -> object:
    return getattr(finish_reason, "value", finish_reason)
