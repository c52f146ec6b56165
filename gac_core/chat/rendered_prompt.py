"""Prompts as each member reads them: rendered with its chat template and encoded with its tokenizer.

Tools are described by the member's own template where that writes calls as ``<tool_call>`` with JSON (native format),
otherwise in plain text (common format).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import cast

from gac_core.chat.conversation import Conversation, Message, Prompt, as_conversation
from gac_core.chat.marks import conversation_texts, map_json_strings, mark_conversation
from gac_core.chat.template import Turn, as_template_call, render_turns, traits_of
from gac_core.chat.tools import THINK, describe_tools, format_calls, format_result
from gac_core.errors import ChatTemplateError, EmptyPromptError, PromptTooLongError, RequestError
from gac_core.images import Image
from gac_core.tokenization.escaping import control_spellings, encode_marked, encode_text, free_mark
from gac_core.tokenization.lengths import check_bytes, min_tokens
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vision import EncodedPrompt, VisionProcessor


def uses_native_tools(tokenizer: MemberTokenizer, conversation: Conversation) -> bool:
    """Returns whether a member's chat template describes the tools of a conversation, its calls and results.

    ``conversation.tool_format`` decides; with ``"auto"``, whether the template can.
    """
    if conversation.tool_format != "auto":
        return conversation.tool_format == "native"
    return bool(tokenizer.hf.chat_template) and traits_of(tokenizer).tools


def opens_thinking(tokenizer: MemberTokenizer, rendered: str) -> bool:
    """Returns whether a rendered conversation ends inside a reasoning block that the template has opened."""
    return rendered.rstrip().endswith(THINK) and traits_of(tokenizer).closes


def check_size(prompt: Prompt) -> None:
    """Raises if a prompt, including its tools, is longer than the longest text that is encoded.

    Raises:
        EmptyPromptError: There is no message.
        RequestError: The prompt is too long, or an item is not a message.
    """
    conversation = as_conversation(prompt)
    check_bytes([cast(str, prompt)] if conversation is None else conversation_texts(conversation))


@dataclass(frozen=True)
class RenderedPrompt:
    """A prompt as text for one member.

    Attributes:
        tokenizer: The member's tokenizer.
        text: The prompt, or the conversation as rendered by the member's chat template.
        is_conversation: Whether ``text`` was rendered by a chat template.
        parse_special: Whether spellings of control tokens in the prompt become control tokens.
        mark: The character in ``text`` that divides spellings of control tokens. Default None: there is none.
        images: The images whose placeholders are in ``text``. Default none.
        vision: Encodes conversations of a member that reads images. Default None: it reads text alone.
    """

    tokenizer: MemberTokenizer
    text: str
    is_conversation: bool
    parse_special: bool
    mark: str | None = None
    images: tuple[Image, ...] = ()
    vision: VisionProcessor | None = None

    def check_length(self, context: int | None) -> None:
        """Raises if the text certainly does not fit into a context, judged by its bytes in milliseconds.

        Args:
            context: The member's context, in tokens; None for no limit.

        Raises:
            PromptTooLongError: The text has more than ``context`` tokens, however it is encoded.
        """
        text = self.text.replace(self.mark, "") if self.mark else self.text
        # Any number of end-of-text ids is removed from the end of a prompt.
        ends = [self.tokenizer.control_tokens.get(index, "") for index in self.tokenizer.end_ids]
        stripped = self.parse_special and text.rstrip().endswith(tuple(end for end in ends if end))
        if context is None or stripped:
            return
        least = min_tokens(self.tokenizer, text)
        if least > context:
            size = len(text.encode("utf-8", "surrogatepass"))
            raise PromptTooLongError(self.tokenizer.name, least, context, size)

    def encode(self) -> list[int]:
        """Returns the token ids of the prompt; errors as in `read`."""
        return self.read().token_ids

    def read(self) -> EncodedPrompt:
        """Returns the token ids of the prompt, and its images as the model reads them.

        Raises:
            EmptyPromptError: The prompt has no tokens.
            RequestError: The prompt cannot be encoded, or not without control tokens, or an image cannot be read.
        """
        tokenizer = self.tokenizer
        if self.is_conversation and self.vision is not None:
            prompt = self.vision.encode(tokenizer, self.text, self.mark, self.images)
        elif self.is_conversation:
            prompt = EncodedPrompt(encode_marked(tokenizer, self.text, self.mark))
        elif self.parse_special:
            prompt = EncodedPrompt(tokenizer.encode_prompt(self.text))
        else:
            prompt = EncodedPrompt(encode_text(tokenizer, self.text))
        ids = prompt.token_ids
        if not ids:
            raise EmptyPromptError(f"the prompt has no tokens for member {tokenizer.name!r}; give some visible text")
        bad = next((i for i in ids if i >= tokenizer.rows), None)
        if bad is not None:
            raise RequestError(
                f"the prompt contains token {bad} ({tokenizer.hf.convert_ids_to_tokens(bad)!r}), for which the model "
                f"of member {tokenizer.name!r} has no embedding; load it with the tokenizer of this model"
            )
        return prompt


def render_prompt(
    tokenizer: MemberTokenizer,
    prompt: Prompt,
    native: bool = False,
    parse_special: bool = False,
    vision: VisionProcessor | None = None,
) -> RenderedPrompt:
    """Renders a prompt for one member.

    A string is passed on as it is. Messages are rendered with the member's chat template and its generation prompt.

    Args:
        tokenizer: The member's tokenizer.
        prompt: The prompt.
        native: Whether the template describes the tools (see `uses_native_tools`). Default False.
        parse_special: Whether spellings of control tokens become control tokens. Default False: they are text.
        vision: Encodes conversations of a member that reads images. Default None: it reads the text alone.

    Raises:
        ChatTemplateError: The member has no chat template, or its template rejects this conversation.
        EmptyPromptError: The prompt is empty.
        RequestError: The prompt is not a string, a list of messages or a conversation.
    """
    conversation = as_conversation(prompt)
    if conversation is None:
        if not prompt:
            raise EmptyPromptError("the prompt is empty; give at least one character")
        return RenderedPrompt(tokenizer, cast(str, prompt), False, parse_special)
    if vision is None:
        conversation = conversation.without_images()
    text, mark = _render(tokenizer, conversation, native, parse_special)
    # Templates may repeat parts of a conversation.
    check_bytes([text], f"the conversation as rendered by the chat template of member {tokenizer.name!r}")
    return RenderedPrompt(tokenizer, text, True, parse_special, mark, conversation.images, vision)


def render_conversation(tokenizer: MemberTokenizer, conversation: Conversation, native: bool = False) -> str:
    """Renders the text of a conversation with the member's chat template and its generation prompt.

    Args:
        tokenizer: The member's tokenizer.
        conversation: The conversation.
        native: Whether the template describes the tools (see `uses_native_tools`). Default False.

    Raises:
        ChatTemplateError: The member has no chat template, or its template rejects this conversation.
    """
    text, mark = _render(tokenizer, conversation.without_images(), native)
    return text.replace(mark, "") if mark else text


def _render(
    tokenizer: MemberTokenizer, conversation: Conversation, native: bool, parse_special: bool = False
) -> tuple[str, str | None]:
    """The rendered conversation, and the mark that divides spellings of control tokens, if any."""
    if native and not traits_of(tokenizer).tools:
        raise ChatTemplateError(
            tokenizer.name,
            "its chat template does not write tool calls as <tool_call> with JSON; set tool_format='common'",
        )
    if parse_special:
        return _apply_template(tokenizer, conversation, native, str), None
    mark = free_mark(conversation_texts(conversation))
    marked, inner, has_edges = mark_conversation(tokenizer, conversation, mark)
    text = _apply_template(tokenizer, marked, native, inner)
    if has_edges:
        # The edge of a message may form a spelling with the template's own text. Marks at the edges prevent that.
        spellings = control_spellings(tokenizer)
        marked, _, _ = mark_conversation(tokenizer, conversation, mark, edges=True)
        divided = _apply_template(tokenizer, marked, native, inner)
        own, found = ([word for part in each.split(mark) for word in spellings.read(part)] for each in (divided, text))
        if own != found:
            return divided, mark
    return text, mark


def _apply_template(
    tokenizer: MemberTokenizer, conversation: Conversation, native: bool, change: Callable[[str], str]
) -> str:
    """The conversation as the member's template writes it, with ``change`` applied to argument values of calls."""
    tools = conversation.offered_tools
    turns = _native_turns(conversation.turns, change) if native else _common_turns(conversation)
    thinking = conversation.enable_thinking
    settings = {} if thinking is None else {"enable_thinking": thinking}
    return render_turns(tokenizer, turns, tools if native else (), settings)


def _native_turns(messages: Sequence[Message], change: Callable[[str], str]) -> list[Turn]:
    """Turns for templates with tool support.

    These take arguments as values, in which spellings may appear that JSON escapes had hidden.
    """
    turns = []
    for message in _in_call_order(messages):
        turn = _plain_turn(message, message.content)
        if message.tool_calls:
            turn["tool_calls"] = [map_json_strings(as_template_call(call), change) for call in message.tool_calls]
        if message.tool_call_id is not None:
            turn["tool_call_id"] = message.tool_call_id
        turns.append(turn)
    return turns


def _common_turns(conversation: Conversation) -> list[Turn]:
    """Turns of the roles system, user and assistant, with tools, calls and results as plain text."""
    messages = _in_call_order(conversation.turns)
    tools = conversation.offered_tools
    turns: list[Turn] = []
    if tools:
        content = describe_tools(tools, conversation.tool_choice, conversation.parallel_tool_calls)
        if messages[0].role == "system":
            content = f"{messages[0].content}\n\n{content}" if messages[0].content else content
            messages = messages[1:]
        turns.append({"role": "system", "content": content})
    for is_result, group in groupby(messages, lambda message: message.role == "tool"):
        if is_result:
            turns.append({"role": "user", "content": "\n".join(format_result(message.content) for message in group)})
        else:
            turns += [_plain_turn(message, format_calls(message.content, message.tool_calls)) for message in group]
    return turns


def _plain_turn(message: Message, content: str) -> Turn:
    turn: Turn = {"role": message.role, "content": content}
    if message.images:
        turn["content"] = [
            {"type": "text", "text": part} if isinstance(part, str) else {"type": "image"} for part in message.parts
        ]
    if message.name is not None:
        turn["name"] = message.name
    if message.reasoning:
        # Templates of reasoning models decide which reasoning to render; others ignore the key.
        turn["reasoning_content"] = message.reasoning
    return turn


def _in_call_order(messages: Sequence[Message]) -> list[Message]:
    """Sorts adjacent results by the order of their calls, because most templates do not render call ids."""
    order = {call.id: place for place, call in enumerate(call for m in messages for call in m.tool_calls)}
    ordered: list[Message] = []
    for is_result, group in groupby(messages, lambda message: message.role == "tool"):
        neighbours = list(group)
        if is_result and all(message.tool_call_id in order for message in neighbours):
            neighbours.sort(key=lambda message: order[cast(str, message.tool_call_id)])
        ordered += neighbours
    return ordered
