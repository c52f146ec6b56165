"""LangChain's messages, tools and formats turned into the ensemble's.

Knows values only; knows nothing of ensembles or of how models are called.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from langchain_core.messages import (
    AIMessage,
    BaseMessage,
    ChatMessage,
    HumanMessage,
    SystemMessage,
    ToolMessage,
)
from langchain_core.tools import BaseTool
from langchain_core.utils.function_calling import convert_to_openai_tool
from pydantic import BaseModel

from gac_core import (
    Conversation,
    Grammar,
    Message,
    RequestError,
    Tool,
    ToolCall,
    is_recursive,
    quote,
    shorten,
    tell_schema,
)

# Parts of a message that stand for what its fields say already, or for what no model is told.
_PASSED_OVER = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "server_tool_call", "function_call")
_REASONING = ("reasoning", "thinking", "redacted_thinking")


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Turns LangChain messages into the ensemble's.

    Raises:
        RequestError: A message is of a kind, or holds a part, that the members cannot be told.
    """
    return [_message(message) for message in messages]


def _message(message: BaseMessage) -> Message:
    name = message.name
    if isinstance(message, SystemMessage):
        return Message("system", _text(message), name=name)
    if isinstance(message, HumanMessage):
        return Message("user", _text(message), name=name)
    if isinstance(message, AIMessage):
        calls = [
            ToolCall(c["id"] or f"call_{n}", c["name"], _json(c["args"])) for n, c in enumerate(message.tool_calls)
        ]
        content = _text(message)
        # What began as a call and was none is part of what the assistant said.
        broken = [str(call.get("args") or "") for call in message.invalid_tool_calls]
        said = "\n".join(part for part in (content, *broken) if part)
        reasoning = message.additional_kwargs.get("reasoning_content") or _reasoning(message)
        return Message("assistant", said, tuple(calls), name=name, reasoning=reasoning or None)
    if isinstance(message, ToolMessage):
        return Message("tool", _text(message), tool_call_id=message.tool_call_id, name=name)
    if isinstance(message, ChatMessage) and message.role in ("system", "user", "assistant"):
        return Message(message.role, _text(message), name=name)  # type: ignore[arg-type]
    raise RequestError(
        f"a {type(message).__name__} cannot be told to the members; use system, human, AI and tool messages"
    )


def _text(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return message.content
    parts: list[str] = []
    for part in message.content:
        kind = "text" if isinstance(part, str) else part.get("type")
        if isinstance(part, str):
            parts.append(part)
        elif kind in ("text", "text-plain", "input_text", "output_text") and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind == "json" and "json" in part:
            parts.append(_json(part["json"]))
        elif kind not in _PASSED_OVER and kind not in _REASONING:
            raise RequestError(f"the members read text only; a message holds a part of type {quote(kind)}")
    return "".join(parts)


def _reasoning(message: BaseMessage) -> str:
    if isinstance(message.content, str):
        return ""
    parts = [part for part in message.content if isinstance(part, dict) and part.get("type") in _REASONING]
    return "".join(str(part.get("reasoning") or part.get("thinking") or "") for part in parts)


def _json(value: Any) -> str:
    try:
        return json.dumps(value, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise RequestError(
            f"the members are told JSON, which cannot hold {quote(value)}: {shorten(str(error), 200)}"
        ) from error


def to_tools(tools: Sequence[Any], strict: bool | None = None) -> list[dict[str, Any]]:
    """Turns whatever LangChain takes for tools into OpenAI's form.

    Raises:
        RequestError: LangChain cannot make a tool of one of them.
    """
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise RequestError(f"tools must be a list of tools, not {quote(tools)}")
    return [_to_tool(tool, strict) for tool in tools]


def _to_tool(tool: Any, strict: bool | None) -> dict[str, Any]:
    try:
        converted = convert_to_openai_tool(tool, strict=strict)
    except Exception as error:
        # LangChain raises ValueError, TypeError and pydantic's errors, depending on what it takes the tool for.
        reason = shorten(" ".join(str(error).split()), 200)
        raise RequestError(
            f"{quote(tool)} is not a tool ({reason}); give a function with a docstring and type hints, a pydantic "
            "class, a BaseTool, or a mapping in OpenAI's form"
        ) from error
    arguments = tool.tool_call_schema if isinstance(tool, BaseTool) else tool
    own = recursive_schema(arguments)
    if own is not None:
        converted["function"]["parameters"] = own
    return converted


def recursive_schema(model: Any) -> dict[str, Any] | None:
    """Returns the JSON schema of a pydantic class that refers to itself, whose references LangChain would drop."""
    if not (isinstance(model, type) and issubclass(model, BaseModel)):
        return None
    schema = model.model_json_schema()
    return schema if is_recursive(schema) else None


def core_tools(tools: Sequence[Any]) -> list[Tool]:
    """Turns tools in any of LangChain's forms into the ensemble's.

    Raises:
        RequestError: One has no form that the ensemble knows.
    """
    out = []
    for tool in to_tools(tools):
        function = dict(tool.get("function", {}))
        out.append(Tool.from_openai({"type": tool.get("type"), "function": function}))
    return out


def to_choice(choice: Any, names: Sequence[str]) -> str | None:
    """Turns a tool choice in any of LangChain's forms into the ensemble's; None leaves it to the models.

    Raises:
        RequestError: It is none, or names a tool that is not there.
    """
    if choice is None or choice is False:
        return None
    if choice is True or choice in ("any", "required"):
        return "required"
    if isinstance(choice, Mapping):
        function = choice.get("function")
        choice = function.get("name") if isinstance(function, Mapping) else choice.get("name") or choice.get("type")
        if choice == "any":
            return "required"
    if choice in ("auto", "none", *names):
        return str(choice)
    raise RequestError(
        f"tool_choice must be 'auto', 'any', 'required', 'none', True, or the name of a tool ({', '.join(names)}), "
        f"not {quote(choice)}"
    )


def to_conversation(messages: Sequence[BaseMessage], asked: Mapping[str, Any]) -> Conversation:
    """Turns messages, and what a call says of tools, into a conversation.

    Args:
        messages: The messages.
        asked: The call's ``tools``, ``tool_choice``, ``parallel_tool_calls``, ``response_format`` and
            ``enable_thinking``, as far as given.

    Raises:
        RequestError: Something in them has a form that is not known.
    """
    tools = core_tools(asked.get("tools") or ())
    parallel = asked.get("parallel_tool_calls")
    schema = _asked_schema(asked.get("response_format"))
    told = to_messages(messages)
    return Conversation(
        told if schema is None else _with_schema(told, tell_schema(schema, tools=bool(tools))),
        tools,
        tool_choice=to_choice(asked.get("tool_choice"), [tool.name for tool in tools]) or "auto",
        parallel_tool_calls=True if parallel is None else parallel,
        enable_thinking=asked.get("enable_thinking"),
    )


def _with_schema(messages: list[Message], told: str) -> list[Message]:
    """Adds to the system's words, which stay the same while a conversation grows."""
    if messages and messages[0].role == "system":
        return [replace(messages[0], content=f"{messages[0].content}\n\n{told}"), *messages[1:]]
    return [Message("system", told), *messages]


def to_grammar(response_format: Any) -> Grammar | None:
    """Turns a response format in OpenAI's form into a grammar.

    Raises:
        RequestError: It has another form.
        GrammarError: Its schema is none.
    """
    schema = _asked_schema(response_format)
    if schema is not None:
        return Grammar.json_schema(schema)
    return Grammar.json_schema({"type": "object"}) if _kind(response_format) == "json_object" else None


def _asked_schema(response_format: Any) -> Mapping[str, Any] | None:
    """The schema of a response format, if it has one."""
    kind = _kind(response_format)
    if response_format is None or kind in ("text", "json_object"):
        return None
    inner = response_format.get("json_schema") if kind == "json_schema" else None
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if isinstance(schema, Mapping):
        return schema
    raise RequestError(
        'response_format is {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, '
        f'{{"type": "json_object"}} or {{"type": "text"}}, not {quote(response_format)}'
    )


def _kind(response_format: Any) -> Any:
    return response_format.get("type") if isinstance(response_format, Mapping) else None
