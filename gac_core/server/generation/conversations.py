"""From the messages, tools and response format of a body to a conversation and a grammar."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from gac_core.chat.conversation import Conversation, Message
from gac_core.chat.tools import Tool, ToolCall
from gac_core.errors import GaCError, RequestError, listed, quote
from gac_core.grammar.grammar import Grammar
from gac_core.images import Image
from gac_core.integration.structured import StructuredOutput
from gac_core.server.errors import ApiError, as_api_error
from gac_core.server.protocol.chat import (
    AllowedToolsChoice,
    AssistantMessage,
    CallBody,
    ChatBody,
    ChatConversation,
    Content,
    JsonSchemaFormat,
    MessageBody,
    NamedTool,
    TextFormat,
    TextPart,
    ToolMessage,
    UserContent,
    UserMessage,
)


def conversation_of(body: ChatConversation, instruction: str = "") -> Conversation:
    """Returns the conversation of a body.

    Args:
        body: The body.
        instruction: Added to the system message. Default none.

    Raises:
        ApiError: A message, a tool or the choice is wrong.
    """
    messages = [_message(index, message) for index, message in enumerate(body.messages)]
    if instruction and messages[0].role == "system":
        text = f"{messages[0].content}\n\n{instruction}" if messages[0].content else instruction
        messages[0] = Message("system", text, name=messages[0].name)
    elif instruction:
        messages = [Message("system", instruction), *messages]
    tools = [_tool(index, tool.function.model_dump()) for index, tool in enumerate(body.tools or ())]
    tools, choice = _chosen(body, tools)
    parallel = True if body.parallel_tool_calls is None else body.parallel_tool_calls
    try:
        return Conversation(
            messages,
            tools,
            tool_choice=choice,
            parallel_tool_calls=parallel,
            enable_thinking=body.enable_thinking,
        )
    except RequestError as error:
        raise as_api_error(error, "tool_choice" if choice == "required" and not tools else "tools") from error


def structured_output(body: ChatBody) -> StructuredOutput | None:
    """Returns the grammar and the instruction of a response format; None for text, and for calls only.

    Raises:
        ApiError: The schema cannot be enforced.
    """
    wanted = body.response_format
    if wanted is None or isinstance(wanted, TextFormat) or requires_calls(body):
        return None
    try:
        if isinstance(wanted, JsonSchemaFormat):
            return StructuredOutput.of(wanted.json_schema.json_schema, tools=bool(body.tools))
        return StructuredOutput(Grammar.json_schema({"type": "object"}), "")
    except RequestError as error:
        raise as_api_error(error, "response_format.json_schema.schema") from error


def requires_calls(body: ChatConversation) -> bool:
    """Whether the answer must consist of calls."""
    choice = body.tool_choice
    if isinstance(choice, AllowedToolsChoice):
        return choice.allowed_tools.mode == "required"
    return choice == "required" or isinstance(choice, NamedTool)


def _text(content: Content | None) -> str:
    if content is None or isinstance(content, str):
        return content or ""
    return "".join(part.text for part in content)


def _parts(index: int, content: UserContent) -> str | list[str | Image]:
    """Returns the texts and images of a user's message.

    Raises:
        ApiError: An image is not a supported one, or its URL would have to be fetched.
    """
    if isinstance(content, str):
        return content
    parts: list[str | Image] = []
    for place, part in enumerate(content):
        if isinstance(part, TextPart):
            parts.append(part.text)
            continue
        try:
            parts.append(Image.from_url(part.image_url.url))
        except RequestError as error:
            raise as_api_error(error, f"messages[{index}].content[{place}].image_url.url") from error
    return parts


def _message(index: int, body: MessageBody) -> Message:
    try:
        if isinstance(body, AssistantMessage):
            return _assistant(body)
        if isinstance(body, ToolMessage):
            return Message("tool", _text(body.content), tool_call_id=body.tool_call_id, name=body.name)
        if isinstance(body, UserMessage):
            return Message("user", _parts(index, body.content), name=body.name)  # type: ignore[arg-type]
        return Message("system", _text(body.content), name=body.name)
    except RequestError as error:
        raise as_api_error(error, f"messages[{index}]") from error


def _assistant(body: AssistantMessage) -> Message:
    """Returns an earlier answer; calls whose arguments are not a JSON object are kept as text."""
    if body.content is None and not body.tool_calls and not body.reasoning_content:
        raise RequestError("a message of role 'assistant' has neither content nor tool_calls; give one of them")
    calls: list[ToolCall] = []
    texts = [_text(body.content)]
    for call in body.tool_calls or ():
        valid = _call(call)
        if valid is None:
            texts.append(
                f'<tool_call>{{"name": {json.dumps(call.function.name)}, "arguments": {call.function.arguments}'
            )
        else:
            calls.append(valid)
    text = "\n".join(part for part in texts if part)
    return Message("assistant", text, tuple(calls), name=body.name, reasoning=body.reasoning_content or None)


def _call(body: CallBody) -> ToolCall | None:
    """Returns a call; None if its arguments are not a JSON object."""
    try:
        return ToolCall(body.id, body.function.name, body.function.arguments.strip() or "{}")
    except GaCError:
        return None


def _tool(index: int, function: dict[str, Any]) -> Tool:
    try:
        return Tool.from_openai({"type": "function", "function": function})
    except RequestError as error:
        raise as_api_error(error, f"tools[{index}].function") from error


def _chosen(body: ChatConversation, tools: list[Tool]) -> tuple[list[Tool], str]:
    """Returns the tools that may be called, and `Conversation.tool_choice`."""
    choice = body.tool_choice
    if choice is None or isinstance(choice, str):
        return tools, choice or "auto"
    if isinstance(choice, AllowedToolsChoice):
        names = [tool.function.name for tool in choice.allowed_tools.tools]
        _check_known(names, tools)
        return [tool for tool in tools if tool.name in names], choice.allowed_tools.mode
    return tools, _named(choice, tools)


def _named(choice: NamedTool, tools: Sequence[Tool]) -> str:
    name = choice.function.name
    _check_known([name], tools)
    if name in ("auto", "none", "required"):
        raise ApiError(
            400, "invalid_value", f"tool_choice names the tool {quote(name)}; rename it", param="tool_choice"
        )
    return name


def _check_known(names: Sequence[str], tools: Sequence[Tool]) -> None:
    known = [tool.name for tool in tools]
    for name in names:
        if name not in known:
            message = f"tool_choice names {quote(name)}, which is not in tools; tools are: {listed(known) or 'none'}"
            raise ApiError(400, "invalid_value", message, param="tool_choice")
