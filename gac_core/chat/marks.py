"""Conversations whose texts cannot become control tokens: a mark divides every spelling of a control token."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

from gac_core.chat.conversation import Conversation, Message
from gac_core.chat.template import traits_of
from gac_core.chat.tools import ToolCall
from gac_core.tokenization.escaping import Marker, control_spellings
from gac_core.tokenization.tokenizer import MemberTokenizer


def mark_conversation(
    tokenizer: MemberTokenizer, conversation: Conversation, mark: str, edges: bool = False
) -> tuple[Conversation, Marker, bool]:
    """Returns a conversation with a mark in every spelling of a control token.

    In messages of users and tools, the tags of calls and reasoning are marked too. The texts before and after an image
    are marked separately: for a member that reads the text alone, remove the images first, since a spelling may form
    across the place of one.

    Args:
        tokenizer: The member's tokenizer.
        conversation: The conversation.
        mark: A character that the conversation does not contain.
        edges: Whether to mark the edges of messages too; see `Marker`. Default False.

    Returns:
        The marked conversation; the marker for further texts, such as arguments of calls; and whether some message has
        an edge that may form a spelling together with the template's own text.
    """
    inner = Marker(control_spellings(tokenizer), mark)
    plain = Marker(control_spellings(tokenizer), mark, edges)
    strict = Marker(traits_of(tokenizer).tags, mark, edges)
    messages = [
        _map_message(message, strict if message.role in ("user", "tool") else plain, inner)
        for message in conversation.turns
    ]
    tools = [
        replace(tool, description=inner(tool.description), parameters=map_json_strings(tool.parameters, inner))
        for tool in conversation.offered_tools
    ]
    marked = replace(conversation, messages=messages, tools=tools, tool_choice=conversation.tool_choice)
    return marked, inner, plain.has_edges or strict.has_edges


def conversation_texts(conversation: Conversation) -> list[str]:
    """Returns every text that a chat template may render."""
    tools = conversation.offered_tools
    texts = [json.dumps(dict(tool.parameters), ensure_ascii=False) for tool in tools]
    texts += [tool.description for tool in tools]
    for message in conversation.turns:
        texts += [message.content, message.name or "", message.reasoning or "", message.tool_call_id or ""]
        texts += [text for call in message.tool_calls for text in (call.id, call.name, call.arguments)]
        texts += [json.dumps(call.values, ensure_ascii=False) for call in message.tool_calls]
    return texts


def map_json_strings(value: Any, change: Callable[[str], str]) -> Any:
    """Returns a JSON value with a function applied to all strings and keys."""
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {
            change(key) if isinstance(key, str) else key: map_json_strings(part, change) for key, part in value.items()
        }
    if isinstance(value, (list, tuple)):
        return [map_json_strings(part, change) for part in value]
    return value


def _map_message(message: Message, change: Callable[[str], str], inner: Callable[[str], str]) -> Message:
    """The message with ``change`` applied to its texts and ``inner`` to the arguments of its calls."""

    def optional(text: str | None) -> str | None:
        return None if text is None else change(text)

    content: Any = [change(part) if isinstance(part, str) else part for part in message.parts]
    return replace(
        message,
        content=content,
        images=(),
        tool_calls=tuple(ToolCall(change(c.id), change(c.name), inner(c.arguments)) for c in message.tool_calls),
        tool_call_id=optional(message.tool_call_id),
        name=optional(message.name),
        reasoning=optional(message.reasoning),
    )
