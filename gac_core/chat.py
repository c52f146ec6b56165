"""Conversations, and their rendering with each member's own chat template.

Knows tokenizers only through `MemberTokenizer`; knows nothing of models or requests.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

from gac_core.errors import ChatTemplateError, EmptyPromptError, RequestError
from gac_core.tokenizer import MemberTokenizer

Role = Literal["system", "user", "assistant"]


@dataclass(frozen=True)
class Message:
    """One turn of a conversation.

    Attributes:
        role: ``"system"``, ``"user"`` or ``"assistant"``.
        content: Its text.
    """

    role: Role
    content: str

    def __post_init__(self) -> None:
        if self.role not in get_args(Role):
            raise RequestError(f"a message's role must be one of {', '.join(get_args(Role))}, not {self.role!r}")
        if not isinstance(self.content, str):
            raise RequestError(f"a message's content must be a string, not {type(self.content).__name__}")


Prompt = str | Sequence[Message | Mapping[str, str]]


def as_messages(prompt: Sequence[Message | Mapping[str, str]]) -> list[Message]:
    """Checks a conversation and returns it as messages.

    Raises:
        EmptyPromptError: There is no message.
        RequestError: A message is not one, or has an unknown key or role.
    """
    messages: list[Message] = []
    for item in prompt:
        if isinstance(item, Message):
            messages.append(item)
        elif isinstance(item, Mapping):
            if set(item) != {"role", "content"}:
                raise RequestError(f"a message has the keys 'role' and 'content', not {sorted(map(str, item))}")
            messages.append(Message(cast(Role, item["role"]), item["content"]))
        else:
            raise RequestError(f"a prompt is a string or a list of messages; found a {type(item).__name__} in the list")
    if not messages:
        raise EmptyPromptError("the conversation has no message; give at least one of role 'user'")
    return messages


def encode_prompt(tokenizer: MemberTokenizer, prompt: Prompt) -> list[int]:
    """Returns a prompt in one member's ids.

    A string is encoded as the tokenizer does by itself. Messages go through the member's chat template, which must end
    with its generation prompt.

    Raises:
        ChatTemplateError: The member has no chat template, or its template refuses this conversation.
        EmptyPromptError: The prompt is empty.
    """
    if isinstance(prompt, str):
        if not prompt:
            raise EmptyPromptError("the prompt is empty; give at least one character")
        ids = tokenizer.encode_prompt(prompt)
    else:
        ids = tokenizer.encode_rendered(render(tokenizer, as_messages(prompt)))
    if not ids:
        raise EmptyPromptError(f"the prompt has no token for member {tokenizer.name!r}; give some visible text")
    bad = [i for i in ids if i >= tokenizer.rows]
    if bad:
        raise RequestError(
            f"the prompt holds token {bad[0]} ({tokenizer.hf.convert_ids_to_tokens(bad[0])!r}), for which the model of "
            f"member {tokenizer.name!r} has no embedding; its tokenizer does not belong to its model"
        )
    return ids


def render(tokenizer: MemberTokenizer, messages: Sequence[Message]) -> str:
    """Renders a conversation with the member's chat template and its generation prompt."""
    if not tokenizer.hf.chat_template:
        raise ChatTemplateError(
            tokenizer.name, "it has no chat template; give the prompt as a string, or set MemberConfig.chat_template"
        )
    turns = [{"role": message.role, "content": message.content} for message in messages]
    try:
        return str(tokenizer.hf.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    except Exception as error:
        # Templates raise whatever they like; the sandbox they run in is transformers' own.
        raise ChatTemplateError(tokenizer.name, str(error)) from error
