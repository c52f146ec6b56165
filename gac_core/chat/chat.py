"""Conversations rendered with each member's own chat template, and prompts in each member's ids.

Each member gets the tools from its own template where that writes calls as ``<tool_call>`` with JSON (the native form),
otherwise in words that any model can read (the common form). Uses tokenizers only through `MemberTokenizer`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, cast

from gac_core.chat.conversation import Conversation, Message, Prompt, as_conversation, as_messages
from gac_core.chat.guarding import guarded, rewritten_json, texts_of
from gac_core.chat.template import Turn, as_template_call, render_turns, traits_of
from gac_core.chat.tools import THINK, describe, spell_calls, spell_result
from gac_core.errors import ChatTemplateError, EmptyPromptError, PromptTooLongError, RequestError
from gac_core.tokenization.escaping import control_spellings, encode_marked, encode_text, free_mark
from gac_core.tokenization.lengths import check_bytes, least_tokens
from gac_core.tokenization.tokenizer import MemberTokenizer

__all__ = [
    "Conversation",
    "Message",
    "Prompt",
    "RenderedPrompt",
    "as_conversation",
    "as_messages",
    "check_size",
    "encode_prompt",
    "opens_thinking",
    "prepare",
    "render",
    "tells_natively",
]


def tells_natively(tokenizer: MemberTokenizer, talk: Conversation) -> bool:
    """Returns whether a member's own template describes the tools of a conversation, its calls and results.

    Args:
        tokenizer: The member's.
        talk: The conversation; its ``tool_format`` decides, and with ``"auto"`` what the template can do.
    """
    if talk.tool_format != "auto":
        return talk.tool_format == "native"
    return bool(tokenizer.hf.chat_template) and traits_of(tokenizer).tools


def opens_thinking(tokenizer: MemberTokenizer, rendered: str) -> bool:
    """Returns whether a rendered conversation ends inside a block of reasoning that the template has opened."""
    return rendered.rstrip().endswith(THINK) and traits_of(tokenizer).closes


def encode_prompt(
    tokenizer: MemberTokenizer, prompt: Prompt, native: bool = False, parse_special: bool = False
) -> list[int]:
    """Returns a prompt in one member's ids.

    A string is encoded as the tokenizer does by itself. Messages go through the member's chat template, which must end
    with its generation prompt. Words of either that spell a control token are encoded as words.

    Args:
        tokenizer: The member's.
        prompt: The prompt.
        native: Whether tools are told by the template itself (see `tells_natively`). Default False.
        parse_special: Whether such words become control tokens instead. Default False.

    Raises:
        ChatTemplateError: The member has no chat template, or its template refuses this conversation.
        EmptyPromptError: The prompt is empty.
        RequestError: The prompt cannot be encoded, or not without control tokens.
    """
    check_size(prompt)
    return prepare(tokenizer, prompt, native, parse_special).encode()


def check_size(prompt: Prompt) -> None:
    """Raises if a prompt is longer than any text that is encoded, the tools of a conversation included.

    Raises:
        EmptyPromptError: There is no message.
        RequestError: It is, or a message is not one.
    """
    talk = as_conversation(prompt)
    check_bytes([cast(str, prompt)] if talk is None else texts_of(talk))


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as one member's text, not encoded yet.

    Attributes:
        tokenizer: The member's.
        text: The prompt, or the conversation as its chat template writes it.
        is_conversation: Whether a chat template wrote it.
        parse_special: Whether words of the prompt become control tokens.
        mark: What stands inside words of a conversation that would else become control tokens, if any shall.
    """

    tokenizer: MemberTokenizer
    text: str
    is_conversation: bool
    parse_special: bool
    mark: str | None = None

    def check_length(self, context: int | None) -> None:
        """Raises if the text cannot fit into a context, judged by its bytes; takes milliseconds.

        Raises:
            PromptTooLongError: However it is encoded, it is longer than ``context`` tokens.
        """
        text = self.text.replace(self.mark, "") if self.mark else self.text
        # Ids that end a text are left out at the end of a prompt, however many there are.
        ends = [self.tokenizer.control_tokens.get(index, "") for index in self.tokenizer.end_ids]
        stripped = self.parse_special and text.rstrip().endswith(tuple(end for end in ends if end))
        if context is None or stripped:
            return
        least = least_tokens(self.tokenizer, text)
        if least > context:
            size = len(text.encode("utf-8", "surrogatepass"))
            raise PromptTooLongError(self.tokenizer.name, least, context, size)

    def encode(self) -> list[int]:
        """Returns the prompt in the member's ids.

        Raises:
            EmptyPromptError: It has none.
            RequestError: It cannot be encoded, or not without control tokens.
        """
        tokenizer = self.tokenizer
        if self.is_conversation:
            ids = encode_marked(tokenizer, self.text, self.mark)
        else:
            ids = tokenizer.encode_prompt(self.text) if self.parse_special else encode_text(tokenizer, self.text)
        if not ids:
            raise EmptyPromptError(f"the prompt has no token for member {tokenizer.name!r}; give some visible text")
        bad = next((i for i in ids if i >= tokenizer.rows), None)
        if bad is not None:
            raise RequestError(
                f"the prompt holds token {bad} ({tokenizer.hf.convert_ids_to_tokens(bad)!r}), for which the model of "
                f"member {tokenizer.name!r} has no embedding; its tokenizer does not belong to its model"
            )
        return ids


def prepare(
    tokenizer: MemberTokenizer, prompt: Prompt, native: bool = False, parse_special: bool = False
) -> RenderedPrompt:
    """Returns a prompt as one member's text; see `encode_prompt`.

    Raises:
        ChatTemplateError: The member has no chat template, or its template refuses this conversation.
        EmptyPromptError: The prompt is empty.
        RequestError: The prompt is not one.
    """
    talk = as_conversation(prompt)
    if talk is None:
        if not prompt:
            raise EmptyPromptError("the prompt is empty; give at least one character")
        return RenderedPrompt(tokenizer, cast(str, prompt), False, parse_special)
    text, mark = _render(tokenizer, talk, native, parse_special)
    # Templates may repeat what a conversation holds.
    check_bytes([text], f"the conversation as the chat template of member {tokenizer.name!r} writes it")
    return RenderedPrompt(tokenizer, text, True, parse_special, mark)


def render(
    tokenizer: MemberTokenizer, prompt: Conversation | Sequence[Message | Mapping[str, Any]], native: bool = False
) -> str:
    """Renders a conversation with the member's chat template and its generation prompt.

    Args:
        tokenizer: The member's.
        prompt: The conversation.
        native: Whether tools are told by the template itself (see `tells_natively`). Default False.

    Raises:
        ChatTemplateError: The member has no chat template, or its template refuses this conversation.
    """
    talk = prompt if isinstance(prompt, Conversation) else Conversation(prompt)
    text, mark = _render(tokenizer, talk, native)
    return text.replace(mark, "") if mark else text


def _render(
    tokenizer: MemberTokenizer, talk: Conversation, native: bool, parse_special: bool = False
) -> tuple[str, str | None]:
    """The rendered conversation, and the mark that stands in what would else become a control token, if any shall."""
    traits = traits_of(tokenizer)
    if native and not traits.tools:
        raise ChatTemplateError(
            tokenizer.name,
            "its chat template does not write calls of tools as <tool_call> with JSON; set tool_format='common'",
        )
    if parse_special:
        return _written(tokenizer, talk, native, str), None
    mark = free_mark(texts_of(talk))
    marked, plain, has_edges = guarded(tokenizer, talk, mark)
    text = _written(tokenizer, marked, native, plain)
    if has_edges:
        # Beside the template's own text a word's edge may become a spelling, which marks at the edges then prevent.
        spellings = control_spellings(tokenizer)
        divided = _written(tokenizer, guarded(tokenizer, talk, mark, edges=True)[0], native, plain)
        own, found = ([word for part in each.split(mark) for word in spellings.read(part)] for each in (divided, text))
        if own != found:
            return divided, mark
    return text, mark


def _written(tokenizer: MemberTokenizer, talk: Conversation, native: bool, plain: Callable[[str], str]) -> str:
    """The conversation as the member's template writes it, with ``plain`` over the arguments of calls."""
    tools = talk.told_tools
    turns = _native_turns(talk.turns, plain) if native else _common_turns(talk)
    settings = {} if talk.enable_thinking is None else {"enable_thinking": talk.enable_thinking}
    return render_turns(tokenizer, turns, tools if native else (), settings)


def _native_turns(messages: Sequence[Message], plain: Callable[[str], str]) -> list[Turn]:
    """Turns as templates with tools of their own expect them.

    Arguments of calls are values there, in which words may appear that their JSON had written with escapes.
    """
    turns = []
    for message in _results_in_order(messages):
        turn = _plain_turn(message, message.content)
        if message.tool_calls:
            turn["tool_calls"] = [rewritten_json(as_template_call(call), plain) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        turns.append(turn)
    return turns


def _common_turns(talk: Conversation) -> list[Turn]:
    """Turns of the three roles that every template knows, with tools, calls and results in words."""
    messages = _results_in_order(talk.turns)
    turns: list[Turn] = []
    if talk.told_tools:
        told = describe(talk.told_tools, talk.tool_choice, talk.parallel_tool_calls)
        if messages[0].role == "system":
            told = f"{messages[0].content}\n\n{told}" if messages[0].content else told
            messages = messages[1:]
        turns.append({"role": "system", "content": told})
    for is_result, group in groupby(messages, lambda message: message.role == "tool"):
        if is_result:
            turns.append({"role": "user", "content": "\n".join(spell_result(message.content) for message in group)})
        else:
            turns += [_plain_turn(message, spell_calls(message.content, message.tool_calls)) for message in group]
    return turns


def _plain_turn(message: Message, content: str) -> Turn:
    turn: Turn = {"role": message.role, "content": content}
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning:
        # Templates of reasoning models tell it where their model is to see it; others do not look at it.
        turn["reasoning_content"] = message.reasoning
    return turn


def _results_in_order(messages: Sequence[Message]) -> list[Message]:
    """Puts neighbouring results into the order of the calls, by which alone models can tell them apart."""
    order = {call.id: place for place, call in enumerate(call for m in messages for call in m.tool_calls)}
    ordered: list[Message] = []
    for is_result, group in groupby(messages, lambda message: message.role == "tool"):
        neighbours = list(group)
        if is_result and all(message.tool_call_id in order for message in neighbours):
            neighbours.sort(key=lambda message: order[cast(str, message.tool_call_id)])
        ordered += neighbours
    return ordered
