"""How what the engine's thread finds out reaches the threads and event loops that asked.

Knows queues; knows nothing of prompts or models.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import suppress

from gac_core.errors import QueueFullError
from gac_core.output import OutputChunk
from gac_core.reply import Reply
from gac_core.request import Request
from gac_core.worker import Event, Worker

# Seconds between two looks for room in the queue.
_RETRY = 0.01


def delivered(
    worker: Worker, request: Request, reply: Reply, owner: object, eager: bool = False
) -> Iterator[OutputChunk]:
    """Returns the chunks of a request's answer; giving the iterator up frees the engine.

    Args:
        worker: Who does the request.
        request: What is asked.
        reply: Reads the engine's events into chunks.
        owner: Who closes the worker when nobody holds it any more; whoever reads holds it.
        eager: Hand the request in now, waiting for room in the queue, not at the first read. Whoever does so and reads
            nothing must abort it. Default False: an iterator nobody reads costs nothing.

    Raises:
        QueueFullError: There is no room, and ``eager`` is False.
        EngineClosedError: The ensemble is closed.
        GaCError: Whatever ended the request.
    """
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
    if eager:
        worker.submit(request, events.put, wait=True)

    def read() -> Iterator[OutputChunk]:
        _held = owner
        if not eager:
            worker.submit(request, events.put)
        try:
            while True:
                event = events.get()
                if isinstance(event, Exception):
                    raise event
                yield reply.read(event)
                if event.output is not None:
                    return
        finally:
            worker.abort(request.request_id)

    return read()


async def adelivered(
    worker: Worker, ask: Callable[[], tuple[Request, Reply]], wait: bool = False
) -> AsyncIterator[OutputChunk]:
    """`delivered` for event loops; closing or cancelling it frees the engine.

    Args:
        worker: Who does the request.
        ask: Makes the request and its reader; called in a thread, since rendering a long prompt takes time. Holds
            whoever closes the worker when nobody holds it any more.
        wait: Wait for room in the queue instead of being refused. Default False.
    """
    request, reply = await asyncio.to_thread(ask)
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Event] = asyncio.Queue()

    def sink(event: Event) -> None:
        # A loop that was closed under us has nobody left to tell; it may be closed at any moment.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(events.put_nowait, event)

    while True:
        try:
            worker.submit(request, sink)
            break
        except QueueFullError:
            if not wait:
                raise
            await asyncio.sleep(_RETRY)
    try:
        while True:
            event = await events.get()
            if isinstance(event, Exception):
                raise event
            yield reply.read(event)
            if event.output is not None:
                return
    finally:
        worker.abort(request.request_id)
