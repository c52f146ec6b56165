"""Reads bodies of requests, and describes them in the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel

from gac_core.server.protocol.parsing import parsed

LARGE_BYTES = 32 * 1024
"""Length of a body from which it is processed in a thread, so that it does not delay other requests."""

_Body = TypeVar("_Body", bound=BaseModel)
_T = TypeVar("_T")


async def read_body(request: Request, model: type[_Body]) -> _Body:
    """Returns the body of a request.

    Raises:
        ApiError: It is not JSON, or a field is wrong.
    """
    content = await request.body()
    content_type = request.headers.get("content-type", "")
    return await beside_loop(request, lambda: parsed(model, content, content_type))


async def beside_loop(request: Request, work: Callable[[], _T]) -> _T:
    """Returns the result of some work on a request's body, which has been read; in a thread where that is large."""
    if len(await request.body()) < LARGE_BYTES:
        return work()
    return await asyncio.to_thread(work)


def documented(model: type[BaseModel], summary: str) -> dict[str, Any]:
    """Returns the arguments of a route whose body is a model."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {"application/json": {"schema": schema}}
    return {"summary": summary, "openapi_extra": {"requestBody": {"required": True, "content": content}}}
