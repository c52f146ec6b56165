"""The response that sends the events of a request's answers."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Mapping

import anyio
from sse_starlette import EventSourceResponse
from sse_starlette.sse import SendTimeoutError
from starlette.types import Message, Receive, Scope, Send

from gac_core.output import OutputChunk
from gac_core.server.errors import ApiError
from gac_core.server.generation.answers import Answers
from gac_core.server.generation.responses import written
from gac_core.server.generation.streaming import Events, event, merged
from gac_core.server.record import OpenRecord
from gac_core.server.settings import ServerSettings

logger = logging.getLogger(__name__)


class EventStream(EventSourceResponse):
    """Sends the answers of a request while they are generated.

    What arrives while the client takes nothing is joined to one event per answer, so that a slow client delays no other
    and needs the memory of its own answer only. When the client disconnects, or takes nothing for ``send_timeout``
    seconds, the request is aborted.

    Args:
        answers: The answers, which are queued.
        events: Makes the events.
        record: The record of the request.
        settings: The server's settings.
    """

    def __init__(self, answers: Answers, events: Events, record: OpenRecord, settings: ServerSettings) -> None:
        self._answers = answers
        self._events = events
        self._record = record
        self._is_complete = False
        super().__init__(
            self._content(),
            ping=settings.ping_seconds,
            send_timeout=settings.send_timeout,
            client_close_handler_callable=self._client_left,
            headers={"Cache-Control": "no-cache"},
        )

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Sends the response."""
        try:
            await super().__call__(scope, receive, send)
        except SendTimeoutError:
            self._record.client_left()
            logger.info("request %s: the client reads too slowly", self._record.request_id)
            # Closing the connection would wait until the client takes the rest.
            if abort := scope.get("extensions", {}).get("gac.abort"):
                abort()
        finally:
            with anyio.CancelScope(shield=True):
                await self._answers.aclose()

    async def _client_left(self, message: Message) -> None:
        # The server sends the same message once the response is complete.
        if not self._is_complete:
            self._record.client_left()

    async def _content(self) -> AsyncIterator[bytes]:
        try:
            head = self._events.head()
            if head:
                yield head
            async for chunks in self._answers.chunks():
                content = await self._written(merged(chunks))
                if content:
                    yield content
            end = self._events.end(self._answers.finished())
            self._is_complete = True
            yield end
        except Exception as error:
            failure = self._failed(self._answers.generation.as_api_error(error), error)
            self._is_complete = True
            yield failure

    async def _written(self, chunks: Mapping[int, OutputChunk]) -> bytes:
        """Returns the events of chunks by the index of their answers."""
        outputs = [chunk.output for chunk in chunks.values() if chunk.output is not None]
        entries = sum(len(chunk.logprobs or ()) for chunk in chunks.values())
        entries += sum(len(output.token_stats or ()) for output in outputs)
        return await written(
            entries, lambda: b"".join(self._events.chunk(index, chunk) for index, chunk in chunks.items())
        )

    def _failed(self, error: ApiError, cause: Exception) -> bytes:
        """Returns the event of an error after the head, and notes the error."""
        self._record.status, self._record.error = error.status, error.code
        if error.code == "internal_error":
            ids = {"request_id": self._record.request_id}
            logger.error("request %s failed", self._record.request_id, exc_info=cause, extra=ids)
        return event(error.body(self._record.request_id))
