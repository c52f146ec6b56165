"""Ends the work for clients that have left."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any, TypeVar

from starlette.requests import Request

from gac_core.server.errors import ApiError
from gac_core.server.record import CLIENT_LEFT, record_of

_T = TypeVar("_T")


async def while_connected(request: Request, work: Coroutine[Any, Any, _T]) -> _T:
    """Returns the result of some work; cancels it when the client disconnects.

    Args:
        request: The request, whose body has been read.
        work: The work.

    Raises:
        ApiError: The client has left; the response is never sent.
    """
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_disconnect(request))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        record_of(request).client_left()
        raise ApiError(CLIENT_LEFT, "client_closed_request", "the client has left")
    finally:
        for each in (task, gone):
            each.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
