"""`RequestRecord`: what happened to one request, for logs, metrics and traces."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gac_core.errors import shorten
from gac_core.integration.metadata import token_counts
from gac_core.output import RequestOutput
from gac_core.server.errors import SERVER_ERROR, ApiError, error_response, internal_error
from gac_core.server.request_ids import request_id

logger = logging.getLogger(__name__)

CLIENT_LEFT = 499
UNKNOWN_ROUTE = "unknown"
SERVER_STOPPED = "server_stopped"


@dataclass(frozen=True)
class RequestRecord:
    """One finished request.

    Attributes:
        request_id: Its id, as in the header ``x-request-id``.
        route: Template of its route, such as ``/v1/models/{model_id}``; ``"unknown"`` where no route matched.
        model: The model's id as requested, shortened beyond 400 characters; None where none was given or the body was
            not read.
        status: HTTP status; 499 where the client left before the end.
        error: Code of the error body; None without an error.
        stream: Whether the answer was requested as a stream.
        seconds: From the request's arrival to the end of the response.
        first_token_seconds: From arrival to the first tokens that the server read from the engine; None without one.
        outputs: The finished answers, in the order of their ends.
        prompt_tokens: Tokens of the answered prompts, each of which counts once however many answers it has.
        cached_tokens: Those of them that every member found in its KV cache.
        documents: Documents of its prompts, whether it was answered or not.
        streamed_tokens: Union tokens read from the engine, those of answers that did not finish included.
        prompt: The prompt as text; None unless prompts are logged.
    """

    request_id: str
    route: str
    model: str | None
    status: int
    error: str | None
    stream: bool
    seconds: float
    first_token_seconds: float | None
    outputs: tuple[RequestOutput, ...]
    prompt_tokens: int
    cached_tokens: int
    documents: int
    streamed_tokens: int
    prompt: str | None


Observer = Callable[[RequestRecord], None]
"""Called once per request at its end, on the event loop; must not block."""


@dataclass
class OpenRecord:
    """The record of a request that is not finished; fields as in `RequestRecord`."""

    request_id: str
    started: float = field(default_factory=time.monotonic)
    model: str | None = None
    status: int = 500
    error: str | None = None
    stream: bool = False
    first_token_seconds: float | None = None
    outputs: list[RequestOutput] = field(default_factory=list)
    prompt_tokens: int = 0
    cached_tokens: int = 0
    documents: int = 0
    streamed_tokens: int = 0
    prompt: str | None = None

    def add_tokens(self, count: int) -> None:
        """Counts tokens that came from the engine."""
        if count and self.first_token_seconds is None:
            self.first_token_seconds = time.monotonic() - self.started
        self.streamed_tokens += count

    def add_output(self, output: RequestOutput, is_first: bool) -> None:
        """Adds a finished answer.

        Args:
            output: The answer.
            is_first: Whether it is the first one to its prompt, whose tokens are then counted.
        """
        self.outputs.append(output)
        if is_first:
            counts = token_counts(output)
            self.prompt_tokens += counts.prompt
            self.cached_tokens += counts.cached

    def client_left(self) -> None:
        """Notes that the client left before the end."""
        self.status, self.error = CLIENT_LEFT, "client_closed_request"

    def finish(self, route: str) -> RequestRecord:
        """Returns the record of the request, which ends now."""
        return RequestRecord(
            request_id=self.request_id,
            route=route,
            model=None if self.model is None else shorten(self.model),
            status=self.status,
            error=self.error,
            stream=self.stream,
            seconds=time.monotonic() - self.started,
            first_token_seconds=self.first_token_seconds,
            outputs=tuple(self.outputs),
            prompt_tokens=self.prompt_tokens,
            cached_tokens=self.cached_tokens,
            documents=self.documents,
            streamed_tokens=self.streamed_tokens,
            prompt=self.prompt,
        )


def record_of(request: Request) -> OpenRecord:
    """Returns the record of a request."""
    record: OpenRecord = request.scope["state"]["record"]
    return record


class RecordMiddleware:
    """The outermost middleware: gives each request an id and a record, and hands the record to the observers.

    An exception that nothing else handled becomes a response with status 500; its traceback is logged.

    Args:
        app: The application.
        observers: Called with each record. The exceptions of one are logged and do not affect the others.
    """

    def __init__(self, app: ASGIApp, observers: Sequence[Observer]) -> None:
        self._app = app
        self._observers = tuple(observers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        record = OpenRecord(request_id(scope["headers"]))
        scope.setdefault("state", {})["record"] = record
        has_head = False

        async def send_with_id(message: Message) -> None:
            nonlocal has_head
            if message["type"] == "http.response.start":
                has_head = True
                record.status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = record.request_id
            await send(message)

        try:
            await self._app(scope, receive, send_with_id)
        except asyncio.CancelledError:
            # The server is stopping.
            if has_head:
                record.status, record.error = 503, record.error or SERVER_STOPPED
                raise
            message = "the server has stopped; send the request again, to another server or later"
            stopped = ApiError(503, SERVER_STOPPED, message, type=SERVER_ERROR, headers={"Connection": "close"})
            await error_response(scope, stopped)(scope, receive, send_with_id)
        except Exception:
            logger.exception("request %s failed", record.request_id, extra={"request_id": record.request_id})
            response = error_response(scope, internal_error())
            if not has_head:
                await response(scope, receive, send_with_id)
            record.status = response.status_code
        finally:
            self._notify(record.finish(getattr(scope.get("route"), "path", UNKNOWN_ROUTE)))

    def _notify(self, record: RequestRecord) -> None:
        for observer in self._observers:
            try:
                observer(record)
            except Exception:
                logger.exception("an observer of requests failed", extra={"request_id": record.request_id})
