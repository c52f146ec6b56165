"""Conversations: messages, the tools that the answer may call, and how. Values are checked on construction."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast, get_args

from gac_core.chat.content import check_images, read_content, split_content
from gac_core.chat.tools import Tool, ToolCall
from gac_core.checks import check_flag, check_list, check_option
from gac_core.errors import EmptyPromptError, RequestError, listed, quote
from gac_core.images import Image, PlacedImage

Role = Literal["system", "user", "assistant", "tool"]
ToolFormat = Literal["auto", "common", "native"]
_KEYS = ("role", "content", "tool_calls", "tool_call_id", "name", "reasoning")


@dataclass(frozen=True)
class Message:
    """One message of a conversation.

    Attributes:
        role: ``"system"``, ``"user"``, ``"assistant"`` or ``"tool"`` (the result of a call).
        content: The text. May be given as a list of parts, whose texts are joined: strings, `Image`, and mappings in
            OpenAI's form such as ``{"type": "text", "text": ...}``; see `read_content`. Default empty.
        tool_calls: The assistant's tool calls. May be given in OpenAI's form. Default none.
        tool_call_id: Id of the call that a tool's result belongs to. Default None.
        name: Name of the tool or of the speaker, for templates that render it. Default None.
        reasoning: The assistant's reasoning before its answer, for templates that render it. Default None.
        images: The images of a user's message and their places in ``content``, from which they are read if that is a
            list. Default none.

    Raises:
        RequestError: A field has another type or value, or is not allowed for the role.
    """

    role: Role
    content: str = ""
    tool_calls: tuple[ToolCall, ...] = ()
    tool_call_id: str | None = None
    name: str | None = None
    reasoning: str | None = None
    images: tuple[PlacedImage, ...] = ()

    def __post_init__(self) -> None:
        role = check_option(RequestError, "a message's role", self.role, get_args(Role))
        object.__setattr__(self, "role", role)
        given: Any = self.tool_calls if self.tool_calls is not None else ()
        calls = check_list(RequestError, "a message's tool_calls", given, "calls")
        calls = tuple(call if isinstance(call, ToolCall) else ToolCall.from_openai(call) for call in calls)
        object.__setattr__(self, "tool_calls", calls)
        content: Any = "" if self.content is None and calls else self.content
        text, images = read_content(content)
        if images and self.images:
            raise RequestError("a message has images in its content and in images; give them in one of the two")
        object.__setattr__(self, "content", text)
        object.__setattr__(self, "images", images or check_images(self.images, len(text)))
        for field in ("tool_call_id", "name", "reasoning"):
            value = getattr(self, field)
            if value is not None and not isinstance(value, str):
                raise RequestError(f"a message's {field} must be a string or None, not {quote(value)}")
        for field, role in (("tool_calls", "assistant"), ("reasoning", "assistant"), ("tool_call_id", "tool")):
            if getattr(self, field) and self.role != role:
                raise RequestError(
                    f"{field} is allowed in messages of role {role!r} only, not {quote(self.role)}; remove it"
                )
        if self.images and self.role != "user":
            raise RequestError(
                f"images are allowed in messages of role 'user' only, not {quote(self.role)}; move the image to a "
                "message of role 'user'"
            )

    @property
    def parts(self) -> tuple[str | Image, ...]:
        """The texts and images of the content, in order."""
        return split_content(self.content, self.images)


@dataclass(frozen=True)
class Conversation:
    """Messages, the tools that the answer may call, and how it may do so.

    Attributes:
        messages: The messages so far, at least one; mappings are converted to `Message`.
        tools: The tools that may be called; may be given as mappings in OpenAI's form. Default none.
        tool_choice: ``"auto"``: text or calls (default); ``"none"``: no calls, and the prompt does not describe the
            tools; ``"required"``: calls only; or the name of the tool to call.
        parallel_tool_calls: Whether one answer may contain several calls. Default True.
        tool_format: How prompts describe tools. ``"native"``: by each member's chat template; ``"common"``: in plain
            text; ``"auto"``: per member, native where its template writes calls as ``<tool_call>`` with JSON (default).
        enable_thinking: Passed to chat templates. Default None: the template's default.

    Raises:
        EmptyPromptError: There is no message.
        RequestError: A field has another type or value.
    """

    messages: Sequence[Message | Mapping[str, Any]]
    tools: Sequence[Tool] = ()
    tool_choice: str = "auto"
    parallel_tool_calls: bool = True
    tool_format: ToolFormat = "auto"
    enable_thinking: bool | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "messages", tuple(as_messages(self.messages)))
        given = check_list(RequestError, "tools", self.tools, "tools")
        tools = tuple(tool if isinstance(tool, Tool) else Tool.from_openai(tool) for tool in given)
        object.__setattr__(self, "tools", tools)
        names = [tool.name for tool in tools]
        twice = next((name for name, count in Counter(names).items() if count > 1), None)
        if twice is not None:
            raise RequestError(f"two tools have the name {quote(twice)}; rename one")
        if not isinstance(self.tool_choice, str) or self.tool_choice not in ("auto", "none", "required", *names):
            raise RequestError(
                f"tool_choice must be 'auto', 'none', 'required' or the name of a tool, not {quote(self.tool_choice)}; "
                f"the tools are: {listed(names) or 'none'}"
            )
        if self.tool_choice == "required" and not tools:
            raise RequestError("tool_choice 'required' needs at least one tool; give tools")
        check_option(RequestError, "tool_format", self.tool_format, get_args(ToolFormat))
        check_flag(RequestError, "parallel_tool_calls", self.parallel_tool_calls)
        if self.enable_thinking is not None and not isinstance(self.enable_thinking, bool):
            raise RequestError(f"enable_thinking must be True, False or None, not {quote(self.enable_thinking)}")

    @property
    def turns(self) -> tuple[Message, ...]:
        """The messages."""
        return cast(tuple[Message, ...], self.messages)

    @property
    def images(self) -> tuple[Image, ...]:
        """The images of all messages, in order."""
        return tuple(placed.image for message in self.turns for placed in message.images)

    def without_images(self) -> Conversation:
        """Returns the same conversation with the text alone, as members that do not read images get it."""
        return replace(self, messages=[replace(message, images=()) for message in self.turns]) if self.images else self

    @property
    def offered_tools(self) -> tuple[Tool, ...]:
        """The tools that the prompt describes: all of them, or none where none may be called."""
        return () if self.tool_choice == "none" else tuple(self.tools)


Prompt = str | Sequence[Message | Mapping[str, Any]] | Conversation


def as_messages(prompt: Sequence[Message | Mapping[str, Any]]) -> list[Message]:
    """Returns the messages of a prompt, checked.

    Raises:
        EmptyPromptError: There is no message.
        RequestError: An item is not a message, or has an unknown key or role.
    """
    if isinstance(prompt, (str, Mapping)) or not isinstance(prompt, Sequence):
        raise RequestError(f"the prompt must be a string or a list of messages, not {quote(prompt)}")
    messages: list[Message] = []
    for item in prompt:
        if isinstance(item, Message):
            messages.append(item)
        elif isinstance(item, Mapping):
            if "role" not in item or not {"content", "tool_calls"} & set(item) or not set(item) <= set(_KEYS):
                known = ", ".join(map(repr, _KEYS[2:]))
                raise RequestError(
                    f"a message must have the keys 'role' and 'content' and may have {known}; its keys are "
                    f"{listed(map(quote, item)) or 'none'}"
                )
            messages.append(Message(**item))
        else:
            raise RequestError(f"the prompt must be a string or a list of messages; the list contains {quote(item)}")
    if not messages:
        raise EmptyPromptError("the conversation has no messages; give at least one of role 'user'")
    return messages


def as_conversation(prompt: Prompt) -> Conversation | None:
    """Returns a prompt as a conversation, or None for a plain string.

    Raises:
        EmptyPromptError: There is no message.
        RequestError: An item is not a message.
    """
    if isinstance(prompt, str):
        return None
    return prompt if isinstance(prompt, Conversation) else Conversation(prompt)
