"""The bodies of `/tokenize` and `/detokenize`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, RootModel, Tag

from gac_core.server.protocol.chat import ChatConversation
from gac_core.server.protocol.common import MAX_TOKEN_ID, NonEmpty, Part, Text


class TextTokens(Part):
    """A request for the tokens of a text."""

    model: Text | None = Field(None, description="Id of a model; may be left out where one ensemble is served.")
    prompt: NonEmpty
    add_special_tokens: bool | None = Field(
        None, description="Whether to encode it as a prompt, for example with a BOS token. Default: true."
    )


class ChatTokens(ChatConversation):
    """A request for the tokens of a conversation."""

    model: Text | None = Field(None, description="Id of a model; may be left out where one ensemble is served.")


# Tags are part of the locations of errors, so that they must not be names of fields.
def _kind(value: Any) -> str:
    return "ChatTokens" if isinstance(value, dict) and "messages" in value else "TextTokens"


class TokenizeBody(
    RootModel[
        Annotated[
            Annotated[TextTokens, Tag("TextTokens")] | Annotated[ChatTokens, Tag("ChatTokens")],
            Discriminator(_kind),
        ]
    ]
):
    """A request for the tokens of a prompt."""


class DetokenizeBody(Part):
    """A request for the text of tokens."""

    model: Text | None = Field(None, description="Id of a model; may be left out where one ensemble is served.")
    tokens: list[Annotated[int, Field(ge=0, le=MAX_TOKEN_ID)]] = Field(max_length=2**20)
