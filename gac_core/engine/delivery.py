"""How what the engine's thread finds out reaches the threads and event loops that asked.

Whoever asks waits here, no longer than the request's timeout, whatever the engine's thread does. Knows queues; knows
nothing of prompts or models.
"""

from __future__ import annotations

import asyncio
import queue
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial

from gac_core.decoding.request import Request
from gac_core.engine.calls import Call, reported
from gac_core.engine.output_processor import OutputProcessor
from gac_core.engine.worker import Event, Worker
from gac_core.errors import GaCError, QueueFullError, RequestTimeoutError
from gac_core.output import OutputChunk, RequestOutput, afold

# Seconds between two looks for room in the queue.
_RETRY = 0.01

Stamped = tuple[float, Event]


@contextmanager
def _timely(worker: Worker, call: Call, num_tokens: int = 0) -> Iterator[None]:
    """Turns the end of a wait into the request's error, and reports errors."""
    with reported(call.label):
        try:
            yield
        except TimeoutError as error:
            if call.deadline.timeout is None or isinstance(error, GaCError):
                raise
            member = worker.running_member()
            raise RequestTimeoutError(call.deadline.spent, call.deadline.timeout, num_tokens, member) from None


def _timed_out(worker: Worker, call: Call, num_tokens: int) -> RequestTimeoutError:
    """The error of a request that did not end in time, reported."""
    try:
        with _timely(worker, call, num_tokens):
            raise TimeoutError
    except RequestTimeoutError as error:
        return error


def stream_events(worker: Worker, call: Call, owner: object) -> Iterator[OutputChunk]:
    """Returns the chunks of a request's answer; giving the iterator up frees the engine.

    The request is made at once, and queued when the first chunk is asked for.

    Args:
        worker: Who does the request.
        call: What is asked.
        owner: Who closes the worker when nobody holds it any more; whoever reads holds it.

    Raises:
        RequestError: The prompt or an argument is wrong.
        QueueFullError: There is no room.
        EngineClosedError: The ensemble is closed.
        RequestTimeoutError: It took too long.
        GaCError: Whatever ended the request.
    """
    with _timely(worker, call):
        request, reply = call.deadline.within(call.ask)
    return _delivered(worker, call, request, reply, owner)


def _delivered(
    worker: Worker, call: Call, request: Request, reply: OutputProcessor, owner: object
) -> Iterator[OutputChunk]:
    _held = owner
    events: queue.SimpleQueue[Stamped] = queue.SimpleQueue()
    with reported(call.label):
        worker.submit(request, lambda event: events.put((time.monotonic(), event)))
    try:
        while True:
            worker.check_process()
            try:
                at, event = events.get(timeout=call.deadline.left())
            except queue.Empty:
                raise _timed_out(worker, call, reply.num_tokens) from None
            if isinstance(event, Exception):
                raise event
            if call.deadline.passed(at):
                raise _timed_out(worker, call, reply.num_tokens)
            yield reply.read(event)
            if event.output is not None:
                return
    finally:
        worker.abort(request.request_id)


def collect_batch(worker: Worker, calls: Sequence[Call]) -> list[RequestOutput]:
    """Returns several requests' answers, each in its place; the first error ends them all.

    Args:
        worker: Who does the requests; waits for room in the queue.
        calls: What is asked.

    Raises:
        RequestError: A prompt or an argument is wrong.
        EngineClosedError: The ensemble is closed.
        RequestTimeoutError: One took too long.
        GaCError: Whatever ended one of the requests.
    """
    events: queue.SimpleQueue[tuple[int, float, Event]] = queue.SimpleQueue()
    outputs: dict[int, RequestOutput] = {}
    asked: list[tuple[Request, OutputProcessor]] = []

    def sink(place: int, event: Event) -> None:
        events.put((place, time.monotonic(), event))

    for call in calls:
        with _timely(worker, call):
            asked.append(call.deadline.within(call.ask))
    try:
        for place, call in enumerate(calls):
            with _timely(worker, call):
                worker.submit(asked[place][0], partial(sink, place), wait=True, timeout=call.deadline.left())
        while len(outputs) < len(calls):
            # All of one call end at one time.
            first = next(place for place in range(len(calls)) if place not in outputs)
            try:
                place, at, event = events.get(timeout=calls[first].deadline.left())
            except queue.Empty:
                raise _timed_out(worker, calls[first], asked[first][1].num_tokens) from None
            if isinstance(event, Exception):
                raise event
            if calls[place].deadline.passed(at):
                raise _timed_out(worker, calls[place], asked[place][1].num_tokens)
            output = asked[place][1].read(event).output
            if output is not None:
                outputs[place] = output
        return [outputs[place] for place in range(len(calls))]
    except BaseException:
        for request, _ in asked:
            worker.abort(request.request_id)
        raise


async def astream_events(worker: Worker, call: Call, wait: bool = False) -> AsyncIterator[OutputChunk]:
    """`stream_events` for event loops; closing or cancelling it frees the engine.

    Args:
        worker: Who does the request.
        call: What is asked; the request is made in a thread.
        wait: Wait for room in the queue instead of being refused. Default False.
    """
    with _timely(worker, call):
        request, reply = await call.deadline.wait(asyncio.to_thread(call.ask))
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Stamped] = asyncio.Queue()

    def sink(event: Event) -> None:
        # A loop that was closed under us has nobody left to tell; it may be closed at any moment.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(events.put_nowait, (time.monotonic(), event))

    with _timely(worker, call):
        while not await _submitted(worker, request, sink, wait):
            if call.deadline.passed():
                raise TimeoutError
    try:
        while True:
            worker.check_process()
            try:
                at, event = events.get_nowait() if events.qsize() else await call.deadline.wait(events.get())
            except TimeoutError:
                raise _timed_out(worker, call, reply.num_tokens) from None
            if isinstance(event, Exception):
                raise event
            if call.deadline.passed(at):
                raise _timed_out(worker, call, reply.num_tokens)
            yield reply.read(event)
            if event.output is not None:
                return
    finally:
        worker.abort(request.request_id)


async def _submitted(worker: Worker, request: Request, sink: Callable[[Event], None], wait: bool) -> bool:
    """Queues a request; False, after a moment, where there is no room and it may wait."""
    try:
        worker.submit(request, sink)
        return True
    except QueueFullError:
        if not wait:
            raise
        await asyncio.sleep(_RETRY)
        return False


async def acollect_batch(worker: Worker, calls: Sequence[Call], places: int) -> list[RequestOutput]:
    """`collect_batch` for event loops; cancelling it frees the engine.

    Args:
        worker: Who does the requests; waits for room in the queue.
        calls: What is asked.
        places: How many are asked at once.
    """
    room = asyncio.Semaphore(places)

    async def ask(call: Call) -> RequestOutput:
        with _timely(worker, call):
            await call.deadline.wait(room.acquire())
        try:
            return await afold(astream_events(worker, call, wait=True))
        finally:
            room.release()

    tasks = [asyncio.ensure_future(ask(call)) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
