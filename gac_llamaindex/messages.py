"""From LlamaIndex's messages and tools to the ensemble's.

Knows no ensemble. Never changes what it is given.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from gac_core import Message, RequestError, ToolCall, is_recursive, quote

if TYPE_CHECKING:
    from llama_index.core.tools.types import BaseTool

_ROLES: dict[MessageRole, Literal["system", "user", "assistant", "tool"]] = {
    MessageRole.SYSTEM: "system",
    MessageRole.DEVELOPER: "system",
    MessageRole.USER: "user",
    MessageRole.ASSISTANT: "assistant",
    MessageRole.CHATBOT: "assistant",
    MessageRole.MODEL: "assistant",
    MessageRole.TOOL: "tool",
    MessageRole.FUNCTION: "tool",
}


def convert_messages(messages: Sequence[ChatMessage]) -> list[Message]:
    """Turns LlamaIndex messages into the ensemble's.

    Text blocks, and those within a `CitableBlock` (its title and source are not read), are joined by line breaks,
    as `ChatMessage.content` does. Calls of tools are read from `ToolCallBlock`, or from
    ``additional_kwargs["tool_calls"]`` where there is no such block.

    Raises:
        RequestError: A message holds a block that the members cannot read, or a call whose arguments are no JSON
            object.
    """
    return [_convert(message) for message in messages]


def _convert(message: ChatMessage) -> Message:
    role = _ROLES[message.role]
    texts: list[str] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for block in _flattened(message.blocks):
        if isinstance(block, TextBlock):
            texts.append(block.text)
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.content or "")
        elif isinstance(block, ToolCallBlock):
            calls.append(_call(block.tool_call_id, block.tool_name, block.tool_kwargs, len(calls)))
        elif not isinstance(block, CachePoint):
            # A cache point only advises: the engine reuses what prompts share by itself.
            raise RequestError(
                f"the members read text only; a message of role {message.role.value!r} holds a {type(block).__name__}; "
                "turn it into text first"
            )
    extra = message.additional_kwargs
    if not calls and role == "assistant":
        calls = [_given_call(call, place) for place, call in enumerate(extra.get("tool_calls") or ())]
    return Message(
        role,
        "\n".join(texts),
        tool_calls=tuple(calls),
        # Frameworks put the id of the call on the assistant's echo of a result as well, where it says nothing.
        tool_call_id=extra.get("tool_call_id") if role == "tool" else None,
        name=extra.get("name") if role == "tool" else None,
        reasoning="\n".join(thoughts) if thoughts and role == "assistant" else None,
    )


def _flattened(blocks: Sequence[Any]) -> list[Any]:
    """The blocks, with the contents of citable ones in their place."""
    return [part for block in blocks for part in (block.content if isinstance(block, CitableBlock) else [block])]


def _given_call(call: Any, place: int) -> ToolCall:
    """A call as other integrations leave it in ``additional_kwargs``: OpenAI's form, as a mapping or an object."""
    if not isinstance(call, Mapping):
        dump = getattr(call, "model_dump", None)
        call = dump() if dump else call
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise RequestError(
            'additional_kwargs["tool_calls"] holds calls of the form {"id": ..., "type": "function", "function": '
            f'{{"name": ..., "arguments": ...}}}}, not {quote(call)}'
        )
    return _call(call.get("id"), function["name"], function.get("arguments"), place)


def _call(call_id: str | None, name: str, arguments: Any, place: int) -> ToolCall:
    text = arguments if isinstance(arguments, str) and arguments else json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall(call_id or f"call_{place}", name, text)


def told_tools(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Returns tools in OpenAI's form."""
    return [_told(tool) for tool in tools]


def _told(tool: BaseTool) -> dict[str, Any]:
    # LlamaIndex's limit on descriptions is OpenAI's; a member's is its context.
    told = tool.metadata.to_openai_tool(skip_length_check=True)
    schema = tool.metadata.fn_schema.model_json_schema() if tool.metadata.fn_schema is not None else {}
    if is_recursive(schema):
        # LlamaIndex keeps the definitions and drops what refers to them.
        told["function"]["parameters"] = schema
    return told


def chosen(tool_choice: str | Mapping[str, Any] | None, tool_required: bool) -> str:
    """Returns a tool choice in the ensemble's words.

    Args:
        tool_choice: ``"auto"``, ``"none"``, ``"required"`` or ``"any"``, a tool's name, or a mapping in OpenAI's form.
            None: as ``tool_required`` says.
        tool_required: Whether a tool must be called.

    Raises:
        RequestError: It has another form.
    """
    if tool_choice is None:
        return "required" if tool_required else "auto"
    if isinstance(tool_choice, Mapping):
        function = tool_choice.get("function")
        name = function.get("name") if isinstance(function, Mapping) else None
        if not isinstance(name, str):
            raise RequestError(
                f'a tool_choice that is a mapping has the form {{"type": "function", "function": {{"name": ...}}}}, '
                f"not {quote(tool_choice)}"
            )
        return name
    return "required" if tool_choice == "any" else tool_choice
