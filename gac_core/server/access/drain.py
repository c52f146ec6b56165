"""`Drain`: the end of a server, and the middleware that refuses requests from then on."""

from __future__ import annotations

from dataclasses import dataclass

from starlette.types import ASGIApp, Receive, Scope, Send

from gac_core.server.access.auth import OPEN_PATHS
from gac_core.server.access.refusals import refuse
from gac_core.server.errors import SERVER_ERROR, ApiError

RETRY_AFTER = 5
"""Seconds after which another server is expected to answer."""


@dataclass
class Drain:
    """Whether the server is about to end: it finishes the requests that it has, and takes no new ones.

    Attributes:
        draining: Set once, by the first SIGTERM or SIGINT.
    """

    draining: bool = False


class RefuseWhileDraining:
    """ASGI middleware that answers 503 to new requests while the server drains.

    Probes and metrics are answered as before. The listening socket is closed by then; what arrives comes on connections
    that were open.

    Args:
        app: The application behind it.
        drain: The state of the server.
    """

    def __init__(self, app: ASGIApp, drain: Drain) -> None:
        self.app = app
        self._drain = drain

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handles one request."""
        if not self._drain.draining or scope["type"] != "http" or scope["path"] in OPEN_PATHS:
            await self.app(scope, receive, send)
            return
        error = ApiError(
            503,
            "server_draining",
            "the server is shutting down and takes no new requests; send the request again, to another server or later",
            type=SERVER_ERROR,
            headers={"Retry-After": str(RETRY_AFTER), "Connection": "close"},
        )
        await refuse(scope, receive, send, error)
