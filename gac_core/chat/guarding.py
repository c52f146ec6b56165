"""Conversations in which no word of a message or tool spells a control token: marks are put into those that do."""

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


def guarded(
    tokenizer: MemberTokenizer, talk: Conversation, mark: str, edges: bool = False
) -> tuple[Conversation, Marker, bool]:
    """Returns a conversation with a mark in every word that spells a control token.

    Users and tools may not write the tags of calls and reasoning either; system and assistants may.

    Args:
        tokenizer: The member's.
        talk: The conversation.
        mark: A character that it does not hold.
        edges: Whether the texts of messages are marked at their edges too; see `Marker`. Default False.

    Returns:
        The conversation; what puts marks into words, for the arguments of calls; and whether a message's text has an
        edge that may become a spelling together with the template's own text.
    """
    inner = Marker(control_spellings(tokenizer), mark)
    plain = Marker(control_spellings(tokenizer), mark, edges)
    strict = Marker(traits_of(tokenizer).tags, mark, edges)
    messages = [_rewritten(m, strict if m.role in ("user", "tool") else plain, inner) for m in talk.turns]
    tools = [
        replace(tool, description=inner(tool.description), parameters=rewritten_json(tool.parameters, inner))
        for tool in talk.told_tools
    ]
    marked = replace(talk, messages=messages, tools=tools, tool_choice=talk.tool_choice)
    return marked, inner, plain.has_edges or strict.has_edges


def texts_of(talk: Conversation) -> list[str]:
    """Returns every text that may come into the rendered conversation."""
    texts = [json.dumps(dict(tool.parameters), ensure_ascii=False) for tool in talk.told_tools]
    texts += [tool.description for tool in talk.told_tools]
    for message in talk.turns:
        texts += [message.content, message.name or "", message.reasoning or "", message.tool_call_id or ""]
        texts += [text for call in message.tool_calls for text in (call.id, call.name, call.arguments)]
        texts += [json.dumps(call.values, ensure_ascii=False) for call in message.tool_calls]
    return texts


def _rewritten(message: Message, rewrite: Callable[[str], str], inner: Callable[[str], str]) -> Message:
    def each(text: str | None) -> str | None:
        return None if text is None else rewrite(text)

    return replace(
        message,
        content=rewrite(message.content),
        tool_calls=tuple(ToolCall(rewrite(c.id), rewrite(c.name), inner(c.arguments)) for c in message.tool_calls),
        tool_call_id=each(message.tool_call_id),
        name=each(message.name),
        reasoning=each(message.reasoning),
    )


def rewritten_json(value: Any, rewrite: Callable[[str], str]) -> Any:
    """Returns a JSON value with all of its strings and keys rewritten."""
    if isinstance(value, str):
        return rewrite(value)
    if isinstance(value, Mapping):
        return {rewrite(key) if isinstance(key, str) else key: rewritten_json(v, rewrite) for key, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [rewritten_json(item, rewrite) for item in value]
    return value
