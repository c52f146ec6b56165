"""Reads bodies of requests, and describes them in the OpenAPI document."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, TypeVar

from fastapi import Request
from pydantic import BaseModel

from gac_core.server.generation.disconnects import while_connected
from gac_core.server.protocol.parsing import parsed
from gac_core.threads import DaemonPool

LARGE_BYTES = 32 * 1024
"""Length of a body from which it is processed in a thread, so that it does not delay other requests."""

# Threads of their own: large bodies wait for each other, and no other request for them.
_large = DaemonPool("gac-bodies", threads=2, idle=10.0)

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
    return await in_thread(request, work) if await _is_large(request) else work()


async def in_thread(request: Request, work: Callable[[], _T]) -> _T:
    """Returns the result of some work in a thread; work on a large body is dropped if the client leaves before."""
    if await _is_large(request):
        return await while_connected(request, _finished(_large.submit(work)))
    return await asyncio.to_thread(work)


async def _is_large(request: Request) -> bool:
    return len(await request.body()) >= LARGE_BYTES


async def _finished(future: Future[_T]) -> _T:
    return await asyncio.wrap_future(future)


def documented(model: type[BaseModel], summary: str) -> dict[str, Any]:
    """Returns the arguments of a route whose body is a model."""
    schema = {"$ref": f"#/components/schemas/{model.__name__}"}
    content = {"application/json": {"schema": schema}}
    return {"summary": summary, "openapi_extra": {"requestBody": {"required": True, "content": content}}}
