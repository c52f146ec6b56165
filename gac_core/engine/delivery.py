"""Delivers a request's events from the engine's thread to the thread or event loop that submitted it.

Callers wait here, at most until the request's deadline, whatever the engine's thread does.
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
from gac_core.engine.mailbox import Event
from gac_core.engine.output_processor import OutputProcessor
from gac_core.engine.session import Session
from gac_core.errors import GaCError, QueueFullError, RequestTimeoutError
from gac_core.output import OutputChunk, RequestOutput, afold

# Seconds between two attempts to get a place in the queue.
_RETRY = 0.01

Stamped = tuple[float, Event]


@contextmanager
def _timely(session: Session, call: Call, num_tokens: int = 0) -> Iterator[None]:
    """Turns a `TimeoutError` into the request's error, and reports errors."""
    with reported(call.label):
        try:
            yield
        except TimeoutError as error:
            if call.deadline.timeout is None or isinstance(error, GaCError):
                raise
            member = session.running_member()
            raise RequestTimeoutError(call.deadline.spent, call.deadline.timeout, num_tokens, member) from None


def _timed_out(session: Session, call: Call, num_tokens: int) -> RequestTimeoutError:
    """Returns the error of a request that did not end in time, reported."""
    try:
        with _timely(session, call, num_tokens):
            raise TimeoutError
    except RequestTimeoutError as error:
        return error


def _accepted(session: Session, call: Call, processor: OutputProcessor, at: float, event: Event) -> OutputChunk:
    """Returns an event as the caller's chunk; raises if it is an error, or came after the deadline.

    Args:
        session: Runs the request.
        call: Its call.
        processor: Processes its output.
        at: When the event came, by `time.monotonic`.
        event: The event.
    """
    if isinstance(event, Exception):
        raise event
    if call.deadline.passed(at):
        raise _timed_out(session, call, processor.num_tokens)
    return processor.read(event)


def stream_events(session: Session, call: Call, owner: object) -> Iterator[OutputChunk]:
    """Yields the chunks of a request's answer; closing the iterator aborts the request.

    The request is made at once, and queued when the first chunk is read.

    Args:
        session: Runs the request.
        call: The call.
        owner: The ensemble, which the iterator keeps alive.

    Raises:
        RequestError: The prompt or an argument is wrong.
        QueueFullError: There is no place in the queue.
        EngineClosedError: The ensemble is closed.
        RequestTimeoutError: It took too long.
        GaCError: Whatever ended the request.
    """
    with _timely(session, call):
        request, processor = call.deadline.within(call.ask)
    return _events(session, call, request, processor, owner)


def _events(
    session: Session, call: Call, request: Request, processor: OutputProcessor, owner: object
) -> Iterator[OutputChunk]:
    _kept_alive = owner
    events: queue.SimpleQueue[Stamped] = queue.SimpleQueue()
    with reported(call.label):
        session.submit(request, lambda event: events.put((time.monotonic(), event)))
    try:
        while True:
            session.check_process()
            try:
                at, event = events.get(timeout=call.deadline.left())
            except queue.Empty:
                if not call.deadline.passed():
                    # The wait ended early.
                    continue
                raise _timed_out(session, call, processor.num_tokens) from None
            chunk = _accepted(session, call, processor, at, event)
            yield chunk
            if chunk.output is not None:
                return
    finally:
        session.abort(request.request_id)


def collect_batch(session: Session, calls: Sequence[Call]) -> list[RequestOutput]:
    """Returns the answers of several requests in their order; the first error aborts them all.

    Args:
        session: Runs the requests, which wait for places in the queue.
        calls: The calls.

    Raises:
        RequestError: A prompt or an argument is wrong.
        EngineClosedError: The ensemble is closed.
        RequestTimeoutError: One took too long.
        GaCError: Whatever ended one of the requests.
    """
    events: queue.SimpleQueue[tuple[int, float, Event]] = queue.SimpleQueue()
    outputs: dict[int, RequestOutput] = {}
    submitted: list[tuple[Request, OutputProcessor]] = []

    def sink(place: int, event: Event) -> None:
        events.put((place, time.monotonic(), event))

    for call in calls:
        with _timely(session, call):
            submitted.append(call.deadline.within(call.ask))
    try:
        for place, call in enumerate(calls):
            with _timely(session, call):
                session.submit(submitted[place][0], partial(sink, place), wait=True, timeout=call.deadline.left())
        while len(outputs) < len(calls):
            # All calls of a batch have the same deadline.
            first = next(place for place in range(len(calls)) if place not in outputs)
            try:
                place, at, event = events.get(timeout=calls[first].deadline.left())
            except queue.Empty:
                if not calls[first].deadline.passed():
                    # The wait ended early.
                    continue
                raise _timed_out(session, calls[first], submitted[first][1].num_tokens) from None
            output = _accepted(session, calls[place], submitted[place][1], at, event).output
            if output is not None:
                outputs[place] = output
        return [outputs[place] for place in range(len(calls))]
    except BaseException:
        for request, _ in submitted:
            session.abort(request.request_id)
        raise


async def astream_events(session: Session, call: Call, wait: bool = False) -> AsyncIterator[OutputChunk]:
    """`stream_events` for event loops; closing or cancelling it aborts the request.

    Args:
        session: Runs the request.
        call: The call; its request is made in a thread.
        wait: Wait for a place in the queue instead of being refused. Default False.
    """
    with _timely(session, call):
        request, processor = await call.deadline.wait(asyncio.to_thread(call.ask))
    loop = asyncio.get_running_loop()
    events: asyncio.Queue[Stamped] = asyncio.Queue()

    def sink(event: Event) -> None:
        # The loop may have been closed; then no one reads the events.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(events.put_nowait, (time.monotonic(), event))

    with _timely(session, call):
        while not await _submitted(session, request, sink, wait):
            if call.deadline.passed():
                raise TimeoutError
    try:
        while True:
            session.check_process()
            try:
                at, event = events.get_nowait() if events.qsize() else await call.deadline.wait(events.get())
            except TimeoutError:
                raise _timed_out(session, call, processor.num_tokens) from None
            chunk = _accepted(session, call, processor, at, event)
            yield chunk
            if chunk.output is not None:
                return
    finally:
        session.abort(request.request_id)


async def _submitted(session: Session, request: Request, sink: Callable[[Event], None], wait: bool) -> bool:
    """Queues a request; False, after a moment, if there is no place and it may wait."""
    try:
        session.submit(request, sink)
        return True
    except QueueFullError:
        if not wait:
            raise
        await asyncio.sleep(_RETRY)
        return False


async def acollect_batch(session: Session, calls: Sequence[Call], places: int) -> list[RequestOutput]:
    """`collect_batch` for event loops; cancelling it aborts the requests.

    Args:
        session: Runs the requests, which wait for places in the queue.
        calls: The calls.
        places: How many are submitted at once.
    """
    room = asyncio.Semaphore(places)

    async def run(call: Call) -> RequestOutput:
        with _timely(session, call):
            await call.deadline.wait(room.acquire())
        try:
            return await afold(astream_events(session, call, wait=True))
        finally:
            room.release()

    tasks = [asyncio.ensure_future(run(call)) for call in calls]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
