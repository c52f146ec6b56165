"""Tools, tool calls, and their description in plain text for chat templates without tool support."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gac_core.checks import check_tree
from gac_core.errors import RequestError, quote, shorten

CALL, END_CALL = "<tool_call>", "</tool_call>"
RESULT, END_RESULT = "<tool_response>", "</tool_response>"
THINK, END_THINK = "<think>", "</think>"
SPACE = " \t\n\r"
"""White space in JSON."""

_NAME = re.compile(r"[A-Za-z0-9_.-]{1,64}")


@dataclass(frozen=True)
class Tool:
    """A function that models may call.

    Attributes:
        name: 1 to 64 letters, digits, ``_``, ``.`` and ``-``.
        description: What it does, for the models. Default empty.
        parameters: JSON schema of the arguments, of type ``"object"``. Default, also for an empty schema: no arguments.

    Raises:
        RequestError: A field has another type or value.
    """

    name: str
    description: str = ""
    parameters: Mapping[str, Any] = field(default_factory=lambda: {"type": "object", "properties": {}})

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not _NAME.fullmatch(self.name):
            raise RequestError(
                f"the name of a tool must be 1 to 64 letters, digits, '_', '.' and '-', not {quote(self.name)}"
            )
        if not isinstance(self.description, str):
            raise RequestError(
                f"the description of tool {quote(self.name)} must be a string, not {quote(self.description)}"
            )
        if not isinstance(self.parameters, Mapping):
            raise RequestError(
                f"the parameters of tool {quote(self.name)} must be a JSON schema, not {quote(self.parameters)}"
            )
        if self.parameters.get("type", "object") != "object":
            raise RequestError(
                f"the parameters of tool {quote(self.name)} must be a schema of type 'object', "
                f"not {quote(self.parameters['type'])}; wrap the value in a property"
            )
        if not self.parameters:
            object.__setattr__(self, "parameters", {"type": "object", "properties": {}})
        elif not {"type", "$ref", "anyOf", "oneOf", "allOf"} & set(self.parameters):
            object.__setattr__(self, "parameters", {"type": "object", **self.parameters})
        check_tree(RequestError, f"the parameters of tool {quote(self.name)}", self.parameters)
        try:
            json.dumps(dict(self.parameters), allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"the parameters of tool {quote(self.name)} cannot be written as JSON: {shorten(str(error))}; "
                "give a plain JSON schema"
            ) from error

    @classmethod
    def from_openai(cls, value: Mapping[str, Any]) -> Tool:
        """Returns a tool given in OpenAI's form, ``{"type": "function", "function": {"name": ..., ...}}``.

        Raises:
            RequestError: The mapping has another shape.
        """
        function = value.get("function") if isinstance(value, Mapping) else None
        if not isinstance(function, Mapping) or value.get("type") != "function" or "name" not in function:
            raise RequestError(
                'a tool must have the form {"type": "function", "function": {"name": ..., "description": ..., '
                f'"parameters": {{...}}}}}}, not {quote(value)}'
            )
        parameters = function.get("parameters")
        description = function.get("description") or ""
        if parameters is None:
            return cls(function["name"], description)
        return cls(function["name"], description, parameters)

    def as_openai(self) -> dict[str, Any]:
        """Returns the mapping that `from_openai` takes and chat templates expect."""
        function = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": function}


@dataclass(frozen=True)
class ToolCall:
    """One tool call.

    Attributes:
        id: The id that its result refers to; unique within a conversation.
        name: The tool's name.
        arguments: The arguments as the text of a JSON object, exactly as generated.

    Raises:
        RequestError: The arguments are not a JSON object, or id or name is empty or not a string.
    """

    id: str
    name: str
    arguments: str

    def __post_init__(self) -> None:
        for label, value in (("id", self.id), ("name", self.name)):
            if not isinstance(value, str) or not value:
                raise RequestError(f"the {label} of a tool call must be a non-empty string, not {quote(value)}")
        if not isinstance(self.arguments, str) or not _is_object(self.arguments):
            raise RequestError(
                f"the arguments of call {quote(self.id)} of tool {quote(self.name)} must be the text of a JSON object, "
                f"not {quote(self.arguments)}; use json.dumps for a dict"
            )

    @property
    def values(self) -> dict[str, Any]:
        """The arguments as Python values; a new dict on each access."""
        values: dict[str, Any] = json.loads(self.arguments)
        return values

    @classmethod
    def from_openai(cls, value: Any) -> ToolCall:
        """Returns a call given in OpenAI's form, ``{"id": ..., "function": {"name": ..., "arguments": "..."}}``.

        Raises:
            RequestError: The mapping has another shape.
        """
        function = value.get("function") if isinstance(value, Mapping) else None
        if not isinstance(function, Mapping) or not {"name", "arguments"} <= set(function) or "id" not in value:
            raise RequestError(
                'a tool call must have the form {"id": ..., "type": "function", "function": {"name": ..., "arguments": '
                f'"{{...}}"}}}}, not {quote(value)}'
            )
        return cls(value["id"], function["name"], function["arguments"])


@dataclass(frozen=True)
class InvalidToolCall:
    """A malformed or incomplete tool call.

    Attributes:
        id: A unique id, as of a valid call.
        name: The tool's name; None if it is missing or incomplete.
        arguments: The arguments as generated; if they are incomplete or malformed, up to the end of the call. The whole
            text of the call if there are none.
        error: Why the call is invalid.
    """

    id: str
    name: str | None
    arguments: str
    error: str


def tell_schema(schema: Mapping[str, Any], tools: bool = False) -> str:
    """Returns instructions for models to answer with JSON of a schema.

    A grammar enforces the schema; the instructions tell the models in addition what its fields are for.

    Args:
        schema: The schema.
        tools: Whether the models may call tools instead. Default False.
    """
    when = "Where you call no tool, answer" if tools else "Answer"
    text = json.dumps(schema, ensure_ascii=False)
    return f"{when} with JSON that fits this JSON schema, and with nothing else:\n{text}"


def _is_object(text: str) -> bool:
    """Returns whether a text is a JSON object."""
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def describe_tools(tools: Sequence[Tool], choice: str = "auto", parallel: bool = True) -> str:
    """Returns instructions for models without tool support: the tools, and how to call them.

    Args:
        tools: The tools, at least one.
        choice: ``"auto"``, ``"required"`` or the name of the tool to call. Default ``"auto"``.
        parallel: Whether one answer may contain several calls. Default True.
    """
    schemas = [json.dumps(tool.as_openai()["function"], ensure_ascii=False) for tool in tools]
    if choice == "auto":
        rule = "Call tools only where they help; otherwise answer in plain text."
    elif choice == "required":
        rule = "Answer with a call of a tool now, not in plain text."
    else:
        rule = f"Answer with a call of the tool {choice} now, not in plain text."
    number = (
        "You may make several calls, one after the other."
        if parallel and choice in ("auto", "required")
        else "Make only one call at a time."
    )
    return "\n".join(
        [
            "# Tools",
            "",
            "You can call the following tools. Each line is one tool, with the JSON schema of its parameters:",
            *schemas,
            "",
            "To call a tool, write its name and arguments as JSON between these tags:",
            f'{CALL}{{"name": <name of the tool>, "arguments": <its arguments as a JSON object>}}{END_CALL}',
            f"The result comes back between {RESULT} and {END_RESULT}. {rule} {number}",
        ]
    )


def format_calls(content: str, calls: Sequence[ToolCall]) -> str:
    """Returns an assistant's content followed by its calls, one per line."""
    lines = [f'{CALL}{{"name": {json.dumps(call.name)}, "arguments": {call.arguments}}}{END_CALL}' for call in calls]
    return "\n".join([content, *lines] if content else lines)


def format_result(content: str) -> str:
    """Returns a tool's result between its tags."""
    return f"{RESULT}\n{content}\n{END_RESULT}"
