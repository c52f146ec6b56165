"""LlamaIndex's messages and tools as the ensemble's. The arguments are never modified."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

from llama_index.core.base.llms.types import (
    CachePoint,
    ChatMessage,
    CitableBlock,
    ImageBlock,
    MessageRole,
    TextBlock,
    ThinkingBlock,
    ToolCallBlock,
)

from gac_core import Image, Message, RequestError, ToolCall, quote, with_recursive_parameters
from gac_llamaindex.images import read_image

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
    """Returns LlamaIndex messages as the ensemble's.

    Text blocks, also those of a `CitableBlock` (without its title and source), are joined by line breaks, as
    `ChatMessage.content` does; an image stands at the end of the text before it. Tool calls are read from
    `ToolCallBlock`, or from ``additional_kwargs["tool_calls"]`` where there is no such block.

    Raises:
        RequestError: A message has a block that is neither text nor an image, an image but not the role of a user, or a
            call whose arguments are not a JSON object.
    """
    return [_convert(message) for message in messages]


def _convert(message: ChatMessage) -> Message:
    role = _ROLES[message.role]
    parts: list[str | Image] = []
    thoughts: list[str] = []
    calls: list[ToolCall] = []
    for block in _flattened(message.blocks):
        if isinstance(block, TextBlock):
            parts.append(f"\n{block.text}" if any(isinstance(part, str) for part in parts) else block.text)
        elif isinstance(block, ImageBlock):
            parts.append(_image(block, role))
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.content or "")
        elif isinstance(block, ToolCallBlock):
            calls.append(_call(block.tool_call_id, block.tool_name, block.tool_kwargs, len(calls)))
        elif not isinstance(block, CachePoint):
            # Cache points are hints for services; the engine caches prompt prefixes anyway.
            raise RequestError(
                f"the models read text and images only; a message of role {message.role.value!r} has a "
                f"{type(block).__name__}; convert it to text first"
            )
    extra = message.additional_kwargs
    if not calls and role == "assistant":
        calls = [_given_call(call, place) for place, call in enumerate(extra.get("tool_calls") or ())]
    return Message(
        role,
        parts,  # type: ignore[arg-type]
        tool_calls=tuple(calls),
        # LlamaIndex also sets the id on assistant messages that repeat a result; only tool messages have one.
        tool_call_id=extra.get("tool_call_id") if role == "tool" else None,
        name=extra.get("name") if role == "tool" else None,
        reasoning="\n".join(thoughts) if thoughts and role == "assistant" else None,
    )


def has_images(messages: Sequence[ChatMessage]) -> bool:
    """Returns whether a message has an image block."""
    return any(isinstance(block, ImageBlock) for message in messages for block in _flattened(message.blocks))


def _image(block: ImageBlock, role: str) -> Image:
    if role != "user":
        raise RequestError(
            f"a message of role {role!r} has an ImageBlock, which only messages of role 'user' may have; describe the "
            "image in text there, or append a message of role 'user' with the image"
        )
    return read_image(block)


def _flattened(blocks: Sequence[Any]) -> list[Any]:
    """Returns the blocks, with citable ones replaced by their contents."""
    return [part for block in blocks for part in (block.content if isinstance(block, CitableBlock) else [block])]


def _given_call(call: Any, place: int) -> ToolCall:
    """Converts a call in OpenAI's form, a mapping or an object, as other integrations put it into messages."""
    if not isinstance(call, Mapping):
        dump = getattr(call, "model_dump", None)
        call = dump() if dump else call
    function = call.get("function") if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or "name" not in function:
        raise RequestError(
            'additional_kwargs["tool_calls"] must hold calls of the form {"id": ..., "type": "function", "function": '
            f'{{"name": ..., "arguments": ...}}}}, not {quote(call)}'
        )
    return _call(call.get("id"), function["name"], function.get("arguments"), place)


def _call(call_id: str | None, name: str, arguments: Any, place: int) -> ToolCall:
    text = arguments if isinstance(arguments, str) and arguments else json.dumps(arguments or {}, ensure_ascii=False)
    return ToolCall(call_id or f"call_{place}", name, text)


def openai_tools(tools: Sequence[BaseTool]) -> list[dict[str, Any]]:
    """Returns tools in OpenAI's form."""
    # The limit on the length of descriptions is OpenAI's.
    return [
        with_recursive_parameters(tool.metadata.to_openai_tool(skip_length_check=True), tool.metadata.fn_schema)
        for tool in tools
    ]
