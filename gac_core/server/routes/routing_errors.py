"""Errors of requests for a route that does not exist, or with another method."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from starlette.exceptions import HTTPException

from gac_core.errors import quote, shorten
from gac_core.server.errors import ApiError

ROUTES = (
    *("/v1/chat/completions", "/v1/completions", "/v1/models"),
    *("/tokenize", "/detokenize", "/warm", "/health", "/ready", "/metrics", "/openapi.json"),
)


def routing_error(error: HTTPException, scope: Mapping[str, Any]) -> ApiError:
    """Returns an error of Starlette's router as the client sees it.

    Args:
        error: The error.
        scope: The ASGI scope of the request.
    """
    method, path = scope["method"], scope["path"]
    if error.status_code == 404:
        return ApiError(404, "not_found", f"there is no route {quote(path)}; {_remedy(path)}")
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "another method")
        message = f"{path} does not take {shorten(method, 20)}; use {allowed}"
        return ApiError(405, "method_not_allowed", message, headers=error.headers)
    message = f"{error.detail}: {shorten(method, 20)} {shorten(path)}"
    return ApiError(error.status_code, "invalid_request", message, headers=error.headers)


def _remedy(path: str) -> str:
    """Returns the route that was probably meant, or all of them."""
    ends = [route for route in ROUTES if path.rstrip("/").endswith(route.removeprefix("/v1"))]
    close = ends or difflib.get_close_matches(path[:100], ROUTES, n=1, cutoff=0.8)
    if not close:
        return f"routes are: {', '.join(ROUTES)}"
    is_base = close[0].startswith("/v1") and not path.startswith(close[0])
    base = " (base URLs of clients end in /v1)" if is_base else ""
    return f"did you mean {close[0]}?{base}"
