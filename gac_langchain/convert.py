"""LangChain's messages, tools and response formats as the ensemble's conversations, tools and grammars."""

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

from gac_core import (
    Conversation,
    Grammar,
    Image,
    Message,
    RequestError,
    StructuredOutput,
    Tool,
    ToolCall,
    quote,
    read_tool_choice,
    shorten,
    with_recursive_parameters,
)
from gac_langchain.images import IMAGE_BLOCKS, read_image, refuse_block, refuse_image

# Content blocks that repeat fields of the message, or that chat templates cannot show.
_SKIPPED = ("tool_use", "tool_call", "tool_call_chunk", "invalid_tool_call", "server_tool_call", "function_call")
_REASONING = ("reasoning", "thinking", "redacted_thinking")


def to_messages(messages: Sequence[BaseMessage]) -> list[Message]:
    """Returns LangChain messages as the ensemble's.

    Raises:
        RequestError: A message has an unsupported type, or a content block that is neither text nor an image.
    """
    return [_message(message) for message in messages]


def _message(message: BaseMessage) -> Message:
    name = message.name
    if isinstance(message, SystemMessage):
        return Message("system", _text(message), name=name)
    if isinstance(message, HumanMessage):
        return Message("user", _parts(message), name=name)  # type: ignore[arg-type]
    if isinstance(message, AIMessage):
        calls = [
            ToolCall(c["id"] or f"call_{n}", c["name"], _json(c["args"])) for n, c in enumerate(message.tool_calls)
        ]
        content = _text(message)
        # The text of malformed calls is kept as text.
        broken = [str(call.get("args") or "") for call in message.invalid_tool_calls]
        text = "\n".join(part for part in (content, *broken) if part)
        reasoning = message.additional_kwargs.get("reasoning_content") or _reasoning(message)
        return Message("assistant", text, tuple(calls), name=name, reasoning=reasoning or None)
    if isinstance(message, ToolMessage):
        return Message("tool", _text(message), tool_call_id=message.tool_call_id, name=name)
    if isinstance(message, ChatMessage) and message.role in ("system", "developer", "user", "assistant"):
        # OpenAI's newer name of the system role.
        role = "system" if message.role == "developer" else message.role
        return Message(role, _parts(message) if role == "user" else _text(message), name=name)  # type: ignore[arg-type]
    raise RequestError(f"a {type(message).__name__} is not supported; use system, human, AI and tool messages")


def _text(message: BaseMessage) -> str:
    """Returns the text of a message that must not have images."""
    parts = _parts(message)
    if any(isinstance(part, Image) for part in parts):
        raise refuse_image(message.type)
    return "".join(map(str, parts))


def _parts(message: BaseMessage) -> list[str | Image]:
    """Returns the texts and images of a message, in order."""
    if isinstance(message.content, str):
        return [message.content]
    parts: list[str | Image] = []
    for part in message.content:
        kind = "text" if isinstance(part, str) else part.get("type")
        if isinstance(part, str):
            parts.append(part)
        elif kind in ("text", "text-plain", "input_text", "output_text") and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind == "json" and "json" in part:
            parts.append(_json(part["json"]))
        elif kind in IMAGE_BLOCKS:
            parts.append(read_image(part))
        elif kind not in _SKIPPED and kind not in _REASONING:
            raise refuse_block(kind)
    return parts


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
            f"a message or tool call holds {quote(value)}, which JSON cannot represent: {shorten(str(error), 200)}"
        ) from error


def to_tools(tools: Sequence[Any], strict: bool | None = None) -> list[dict[str, Any]]:
    """Returns tools in any of LangChain's forms in OpenAI's form.

    Raises:
        RequestError: LangChain cannot convert one of them.
    """
    if isinstance(tools, (str, Mapping)) or not isinstance(tools, Sequence):
        raise RequestError(f"tools must be a list of tools, not {quote(tools)}")
    return [_to_tool(tool, strict) for tool in tools]


def _to_tool(tool: Any, strict: bool | None) -> dict[str, Any]:
    try:
        converted = convert_to_openai_tool(tool, strict=strict)
    except Exception as error:
        # ValueError, TypeError or pydantic's errors, depending on the kind of object.
        reason = shorten(" ".join(str(error).split()), 200)
        raise RequestError(
            f"{quote(tool)} is not a tool ({reason}); give a function with a docstring and type hints, a pydantic "
            "class, a BaseTool, or a mapping in OpenAI's form"
        ) from error
    return with_recursive_parameters(converted, tool.tool_call_schema if isinstance(tool, BaseTool) else tool)


def core_tools(tools: Sequence[Any]) -> list[Tool]:
    """Returns tools in any of LangChain's forms as the ensemble's.

    Raises:
        RequestError: One cannot be converted.
    """
    out = []
    for tool in to_tools(tools):
        function = dict(tool.get("function", {}))
        out.append(Tool.from_openai({"type": tool.get("type"), "function": function}))
    return out


def to_conversation(
    messages: Sequence[BaseMessage], given: Mapping[str, Any], output: StructuredOutput | None = None
) -> Conversation:
    """Returns the conversation of a call.

    Args:
        messages: The messages.
        given: The call's ``tools``, ``tool_choice``, ``parallel_tool_calls`` and ``enable_thinking``, as far as given.
        output: What the answer must be; its instruction is added to the system message. Default none.

    Raises:
        RequestError: A message, a tool or the choice has an unsupported form.
    """
    tools = core_tools(given.get("tools") or ())
    parallel = given.get("parallel_tool_calls")
    turns = to_messages(messages)
    return Conversation(
        turns if output is None or not output.instruction else _with_instruction(turns, output.instruction),
        tools,
        tool_choice=read_tool_choice(given.get("tool_choice"), [tool.name for tool in tools]) or "auto",
        parallel_tool_calls=True if parallel is None else parallel,
        enable_thinking=given.get("enable_thinking"),
    )


def _with_instruction(messages: list[Message], instruction: str) -> list[Message]:
    """Adds to the system message, which stays the same as a conversation grows, so that its KV cache is reused."""
    if messages and messages[0].role == "system":
        return [replace(messages[0], content=f"{messages[0].content}\n\n{instruction}"), *messages[1:]]
    return [Message("system", instruction), *messages]


def to_structured_output(response_format: Any, tools: bool = False) -> StructuredOutput | None:
    """Returns what a response format in OpenAI's form asks for; None for plain text.

    Args:
        response_format: The format, or None.
        tools: Whether the answer may call tools instead. Default False.

    Raises:
        RequestError: It has another form.
        GrammarError: Its schema cannot be enforced.
    """
    kind = response_format.get("type") if isinstance(response_format, Mapping) else None
    if response_format is None or kind == "text":
        return None
    if kind == "json_object":
        return StructuredOutput(Grammar.json_schema({"type": "object"}), "")
    inner = response_format.get("json_schema") if kind == "json_schema" else None
    schema = inner.get("schema") if isinstance(inner, Mapping) else None
    if isinstance(schema, Mapping):
        return StructuredOutput.of(schema, tools=tools)
    raise RequestError(
        'response_format must be {"type": "json_schema", "json_schema": {"name": ..., "schema": {...}}}, '
        f'{{"type": "json_object"}} or {{"type": "text"}}, not {quote(response_format)}'
    )
