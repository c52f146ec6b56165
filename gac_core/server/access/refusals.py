"""`refuse`: the response of a middleware to a request whose body it did not read."""

from __future__ import annotations

from starlette.types import Receive, Scope, Send

from gac_core.server.errors import ApiError, error_response


async def refuse(scope: Scope, receive: Receive, send: Send, error: ApiError) -> None:
    """Sends an error.

    The connection stays open, so that clients that send their whole body first get to read the answer; uvicorn discards
    what arrives. It is closed for a client that waits for ``100 Continue``: it may send its next request without the
    body, and the two cannot be told apart.
    """
    if any(name == b"expect" for name, _ in scope["headers"]):
        error.headers["Connection"] = "close"
    await error_response(scope, error)(scope, receive, send)
