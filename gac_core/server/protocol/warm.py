"""The body of `/warm`."""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Discriminator, Field, RootModel, Tag

from gac_core.server.protocol.chat import ChatConversation
from gac_core.server.protocol.common import DocumentBody, NonEmpty, Part, Text
from gac_core.voices import MAX_VOICES


class WarmFields(Part):
    """The documents, whatever the prompt is."""

    model: Text | None = Field(None, description="Id of an ensemble; may be left out where one ensemble is served.")
    documents: Annotated[list[NonEmpty | DocumentBody], Field(min_length=1, max_length=MAX_VOICES)]
    place: NonEmpty | None = Field(None, description='What the documents take the place of. Default: "{document}".')
    pin: bool | None = Field(
        None, description="Whether they are kept until they are unpinned; false: unpins them. Default: true."
    )


class WarmText(WarmFields):
    """Documents of completions."""

    prompt: NonEmpty = Field(description="What follows the place of the document has no effect.")


class WarmChat(ChatConversation, WarmFields):
    """Documents of chat completions; what follows the place of the document has no effect."""


# Tags are part of the locations of errors, so that they must not be names of fields.
def _kind(value: Any) -> str:
    return "WarmChat" if isinstance(value, dict) and "messages" in value else "WarmText"


class WarmBody(
    RootModel[
        Annotated[
            Annotated[WarmText, Tag("WarmText")] | Annotated[WarmChat, Tag("WarmChat")],
            Discriminator(_kind),
        ]
    ]
):
    """A request to keep documents in the KV caches."""
