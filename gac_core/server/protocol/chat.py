"""The body of `/v1/chat/completions`."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, StringConstraints

from gac_core.grammar.grammar import MAX_TOOLS
from gac_core.server.protocol.common import MAX_ITEMS, Count, GenerationBody, NonEmpty, Part, Text

ToolName = Annotated[str, StringConstraints(strict=True, pattern=r"^[A-Za-z0-9_.-]{1,64}$")]


class CacheControl(Part):
    """Asks a service to cache the prompt up to here."""

    type: Literal["ephemeral"]
    ttl: Text | None = None


class TextPart(Part):
    """A part of a message's content."""

    type: Literal["text"]
    text: Text
    cache_control: CacheControl | None = Field(
        None, description="Accepted; has no effect: prefixes of prompts are cached in any case."
    )


class ImageUrl(Part):
    """An image as a URL that holds its bytes."""

    url: Text = Field(description="`data:image/png;base64,...`; PNG, JPEG, WebP or GIF. Other URLs are not fetched.")
    detail: Literal["auto"] | None = Field(None, description="Each member's processor sets the resolution.")


class ImagePart(Part):
    """An image in a message of role `user`, which vision-language members read."""

    type: Literal["image_url"]
    image_url: ImageUrl
    cache_control: CacheControl | None = Field(
        None, description="Accepted; has no effect: prefixes of prompts are cached in any case."
    )


Content = Text | Annotated[list[TextPart], Field(max_length=MAX_ITEMS)]
UserPart = Annotated[TextPart | ImagePart, Field(discriminator="type")]
UserContent = Text | Annotated[list[UserPart], Field(max_length=MAX_ITEMS)]


class InstructionMessage(Part):
    """Instructions to the models; `developer` is another name of `system`."""

    role: Literal["system", "developer"]
    content: Content
    name: Text | None = None


class UserMessage(Part):
    """What the user says."""

    role: Literal["user"]
    content: UserContent
    name: Text | None = None


class CalledFunction(Part):
    """The function of a call."""

    name: NonEmpty
    arguments: Text = Field(description="Text of a JSON object. A call with another text is kept as text.")
    parsed_arguments: Any = Field(None, description="Accepted; has no effect: OpenAI's SDK adds it to answers.")


class CallBody(Part):
    """A call that the models made."""

    id: NonEmpty
    type: Literal["function"]
    function: CalledFunction
    index: int | None = Field(None, description="Accepted; has no effect: calls that were streamed have it.")


class AssistantMessage(Part):
    """An earlier answer."""

    role: Literal["assistant"]
    content: Content | None = None
    name: Text | None = None
    reasoning_content: Text | None = Field(None, description="The reasoning, for templates that render it.")
    tool_calls: Annotated[list[CallBody], Field(max_length=MAX_ITEMS)] | None = None
    refusal: None = None
    annotations: Annotated[list[Any], Field(max_length=MAX_ITEMS)] | None = Field(
        None, description="Accepted; has no effect: answers from documents have them."
    )
    parsed: Any = Field(None, description="Accepted; has no effect: OpenAI's SDK adds it to answers.")
    audio: None = None
    function_call: None = None


class ToolMessage(Part):
    """The result of a call."""

    role: Literal["tool"]
    content: Content
    tool_call_id: NonEmpty
    name: Text | None = None


MessageBody = Annotated[InstructionMessage | UserMessage | AssistantMessage | ToolMessage, Field(discriminator="role")]


class FunctionBody(Part):
    """A function that the models may call."""

    name: ToolName
    description: Text | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON schema of the arguments, of type object.")
    strict: bool | None = Field(None, description="Schemas are enforced in any case.")


class ToolBody(Part):
    """A tool that the models may call."""

    type: Literal["function"]
    function: FunctionBody


class FunctionName(Part):
    """The name of a function."""

    name: ToolName


class NamedTool(Part):
    """A reference to a tool."""

    type: Literal["function"]
    function: FunctionName


class AllowedTools(Part):
    """The tools that may be called, of those that are described."""

    mode: Literal["auto", "required"]
    tools: Annotated[list[NamedTool], Field(min_length=1, max_length=MAX_TOOLS)]


class AllowedToolsChoice(Part):
    """A choice of some tools."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


class SchemaBody(Part):
    """A JSON schema and its name."""

    name: NonEmpty
    description: Text | None = None
    json_schema: dict[str, Any] = Field(alias="schema")
    strict: bool | None = Field(None, description="Schemas are enforced in any case.")


class TextFormat(Part):
    """Any text."""

    type: Literal["text"]


class JsonObjectFormat(Part):
    """A JSON object."""

    type: Literal["json_object"]


class JsonSchemaFormat(Part):
    """JSON of a schema."""

    type: Literal["json_schema"]
    json_schema: SchemaBody


ResponseFormat = Annotated[TextFormat | JsonObjectFormat | JsonSchemaFormat, Field(discriminator="type")]
ToolChoice = Literal["none", "auto", "required"] | NamedTool | AllowedToolsChoice


class ChatConversation(Part):
    """What determines the prompt of a chat completion."""

    messages: list[MessageBody] = Field(min_length=1, max_length=MAX_ITEMS)
    tools: Annotated[list[ToolBody], Field(max_length=MAX_TOOLS)] | None = None
    tool_choice: ToolChoice | None = None
    parallel_tool_calls: bool | None = Field(None, description="Default: true.")
    enable_thinking: bool | None = Field(None, description="Passed to the chat templates.")


class ChatBody(ChatConversation, GenerationBody):
    """A request for a chat completion."""

    max_completion_tokens: Count | None = Field(None, description="As `max_tokens`.")
    response_format: ResponseFormat | None = None
    logprobs: bool | None = Field(None, description="Whether to return log-probabilities. Default: false.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="Most probable tokens per position.")
    reasoning_effort: None = None
    modalities: Annotated[list[Literal["text"]], Field(min_length=1, max_length=1)] | None = None
    store: Literal[False] | None = None
    service_tier: Literal["auto", "default"] | None = None
    safety_identifier: Text | None = Field(None, description="Accepted; has no effect.")
    prompt_cache_key: Text | None = Field(None, description="Accepted; has no effect.")
