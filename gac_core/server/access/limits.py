"""The middleware that limits the size of a body and the time that it takes to arrive."""

from __future__ import annotations

import asyncio

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gac_core.server.access.auth import OPEN_PATHS
from gac_core.server.access.refusals import refuse
from gac_core.server.errors import ApiError
from gac_core.server.settings import ServerSettings


class BodyLimit:
    """ASGI middleware that reads the whole body of a request before the application sees it.

    A body that is too large is refused with 413: by its ``content-length`` before any of it is read, else (chunked
    bodies) once the limit is exceeded. One that has not arrived in time is refused with 408. The bodies of probes,
    which need no key, are not read.

    Args:
        app: The application behind it.
        settings: Its ``max_body_bytes`` and ``body_timeout``.
    """

    def __init__(self, app: ASGIApp, settings: ServerSettings) -> None:
        self.app = app
        self._max_bytes = settings.max_body_bytes
        self._timeout = settings.body_timeout

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        try:
            body = await self._body(scope, receive)
        except ApiError as error:
            await refuse(scope, receive, send, error)
            return
        if body is None:
            scope["state"]["record"].client_left()
            return
        await self.app(scope, _replayed(body, receive), send)

    async def _body(self, scope: Scope, receive: Receive) -> bytes | None:
        """Returns the body; None if the client left before its end.

        Raises:
            ApiError: It is too large, or late.
        """
        lengths = [value for name, value in scope["headers"] if name == b"content-length"]
        if lengths and lengths[0].isdigit() and int(lengths[0][:20]) > self._max_bytes:
            raise self._too_large()
        parts: list[bytes] = []
        size = 0
        try:
            async with asyncio.timeout(self._timeout):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    part = message.get("body", b"")
                    size += len(part)
                    if size > self._max_bytes:
                        raise self._too_large()
                    parts.append(part)
                    if not message.get("more_body", False):
                        return b"".join(parts)
        except TimeoutError:
            raise ApiError(
                408,
                "body_timeout",
                f"the body did not arrive within {self._timeout:g} s; send it faster",
                headers={"Connection": "close"},
            ) from None

    def _too_large(self) -> ApiError:
        return ApiError(
            413,
            "body_too_large",
            f"the body has more than {self._max_bytes} bytes; send a smaller one, or raise --max-body-mib",
        )


def _replayed(body: bytes, receive: Receive) -> Receive:
    """Returns what gives the application the body in one message, and then what else arrives."""
    message: Message | None = {"type": "http.request", "body": body, "more_body": False}

    async def replay() -> Message:
        nonlocal message
        if message is None:
            return await receive()
        first, message = message, None
        return first

    return replay
