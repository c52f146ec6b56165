"""Conversations as strings: lm-evaluation-harness renders them once, an ensemble once for each member."""

from __future__ import annotations

import json
from collections.abc import Sequence

from gac_core.chat.conversation import Prompt
from gac_core.errors import RequestError

MARK = "\ufdd0gac-chat:"
"""What a string that stands for a conversation begins with: a noncharacter, which no text contains."""

Turn = dict[str, str]


def write_chat(turns: Sequence[Turn]) -> str:
    """Returns the string that stands for a conversation."""
    return MARK + json.dumps(list(turns), ensure_ascii=False)


def read_context(context: str) -> Prompt:
    """Returns the prompt of a context: the conversation that it stands for, or the text itself.

    Raises:
        RequestError: Something was appended to the string of a conversation.
    """
    if not context.startswith(MARK):
        return context
    try:
        turns: list[Turn] = json.loads(context.removeprefix(MARK))
    except json.JSONDecodeError as error:
        raise RequestError(
            "the task appends text to a rendered conversation, which an ensemble renders with each member's own "
            "template; run it without --apply_chat_template"
        ) from error
    return turns
