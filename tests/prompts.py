"""Prompts rendered and encoded for one member, as the engine does it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gac_core import Conversation, Message, Prompt
from gac_core.chat.rendered_prompt import check_size, render_conversation, render_prompt
from gac_core.tokenization.tokenizer import MemberTokenizer


def encode_prompt(
    tokenizer: MemberTokenizer, prompt: Prompt, native: bool = False, parse_special: bool = False
) -> list[int]:
    """Returns the token ids of a prompt."""
    check_size(prompt)
    return render_prompt(tokenizer, prompt, native, parse_special).encode()


def render(
    tokenizer: MemberTokenizer, prompt: Conversation | Sequence[Message | Mapping[str, Any]], native: bool = False
) -> str:
    """Returns a conversation as the member's chat template renders it."""
    conversation = prompt if isinstance(prompt, Conversation) else Conversation(prompt)
    return render_conversation(tokenizer, conversation, native)
