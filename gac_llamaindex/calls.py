"""`ModelCall`: a call of `GaCLLM`, as a conversation or a completion."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from llama_index.core.base.llms.types import ChatMessage

from gac_llamaindex.llm import GaCLLM
from gac_llamaindex.requests import Request
from gac_llamaindex.structured import Response


@dataclass(frozen=True)
class ModelCall:
    """A call of a model.

    Attributes:
        llm: The model.
        content: The messages; a complete text where a member has no chat template.
        arguments: Arguments of `GaCLLM.chat` or `GaCLLM.complete`.
    """

    llm: GaCLLM
    content: Sequence[ChatMessage] | str
    arguments: Mapping[str, Any]

    @property
    def text(self) -> str:
        """The text of the prompt, messages joined by line breaks."""
        if isinstance(self.content, str):
            return self.content
        return "\n".join(message.content or "" for message in self.content)

    def request(self) -> Request:
        """Returns the request that the call makes of the ensemble."""
        if isinstance(self.content, str):
            return self.llm._completion_request(self.content, True, self.arguments)
        return self.llm._chat_request(self.content, self.arguments)

    def answer(self) -> Response:
        """Returns the model's response."""
        response: Response
        if isinstance(self.content, str):
            response = self.llm.complete(self.content, formatted=True, **self.arguments)
        else:
            response = self.llm.chat(self.content, **self.arguments)
        return response

    async def aanswer(self) -> Response:
        """`answer` without blocking the event loop."""
        response: Response
        if isinstance(self.content, str):
            response = await self.llm.acomplete(self.content, formatted=True, **self.arguments)
        else:
            response = await self.llm.achat(self.content, **self.arguments)
        return response

    def stream(self) -> Generator[Response, None, None]:
        """Streams the model's responses; each has the text so far."""
        stream: Generator[Response, None, None]
        if isinstance(self.content, str):
            stream = self.llm.stream_complete(self.content, formatted=True, **self.arguments)
        else:
            stream = self.llm.stream_chat(self.content, **self.arguments)
        return stream

    async def astream(self) -> AsyncGenerator[Response, None]:
        """`stream` for event loops."""
        stream: AsyncGenerator[Response, None]
        if isinstance(self.content, str):
            stream = await self.llm.astream_complete(self.content, formatted=True, **self.arguments)
        else:
            stream = await self.llm.astream_chat(self.content, **self.arguments)
        return stream
