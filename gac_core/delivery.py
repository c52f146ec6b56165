"""How what the engine's thread finds out reaches the threads and event loops that asked.

Knows queues; knows nothing of prompts or models.
"""

from __future__ import annotations

import asyncio
import queue
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import suppress

from gac_core.errors import QueueFullError
from gac_core.output import OutputChunk
from gac_core.reply import Reply
from gac_core.request import Request
from gac_core.worker import Event, Worker

# Seconds between two looks for room in the queue.
_RETRY = 0.01


def delivered(worker: Worker, request: Request, reply: Reply, owner: object) -> Iterator[OutputChunk]:
    """Yields the chunks of a request's answer; giving the iterator up frees the engine.

    Args:
        worker: Who does the request.
        request: What is asked.
        reply: Reads the engine's events into chunks.
        owner: Who closes the worker when nobody holds it any more; whoever reads holds it.

    Raises:
        QueueFullError: There is no room.
        EngineClosedError: The ensemble is closed.
        GaCError: Whatever ended the request.
    """
    _held = owner
    events: queue.SimpleQueue[Event] = queue.SimpleQueue()
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


def delivered_together(worker: Worker, requests: Sequence[tuple[Request, Reply]]) -> list[list[OutputChunk]]:
    """Returns the chunks of several requests' answers, each in its place; the first error ends them all.

    Args:
        worker: Who does the requests; waits for room in the queue.
        requests: What is asked, and who reads the engine's events into chunks.

    Raises:
        EngineClosedError: The ensemble is closed.
        GaCError: Whatever ended one of the requests.
    """
    events: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    chunks: list[list[OutputChunk]] = [[] for _ in requests]

    def sink(place: int) -> Callable[[Event], None]:
        return lambda event: events.put((place, event))

    try:
        for place, (request, _) in enumerate(requests):
            worker.submit(request, sink(place), wait=True)
        running = len(requests)
        while running:
            place, event = events.get()
            if isinstance(event, Exception):
                raise event
            chunks[place].append(requests[place][1].read(event))
            running -= event.output is not None
        return chunks
    except BaseException:
        for request, _ in requests:
            worker.abort(request.request_id)
        raise


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
