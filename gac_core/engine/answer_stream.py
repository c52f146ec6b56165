"""Delivers requests' events from the engine's thread to the event loop that submitted them."""

from __future__ import annotations

import asyncio
import time
import weakref
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress

from gac_core.engine.calls import Answering, Call
from gac_core.engine.delivery import RETRY, IndexedEvent, accepted, num_tokens, timed_out, timely
from gac_core.engine.inbox import Inbox
from gac_core.engine.mailbox import Event
from gac_core.engine.session import Session
from gac_core.errors import QueueFullError
from gac_core.output import OutputChunk, RequestOutput, afold


class AnswerStream:
    """The answers to one prompt while they are generated: an async iterator of ``(index, chunk)``.

    The last chunk of each answer has its output. An error of one answer ends them all. Cancelling the task that reads
    the stream, `aclose`, and dropping the stream abort what still runs.

    The first answer is queued already. The others are queued, as there are places, once it has a token: they find the
    prompt in the members' KV caches.

    Args:
        session: Runs the requests.
        call: Their call.
        answers: The requests, one or more, with the processors of their outputs.
        owner: The ensemble, which the stream keeps alive.
    """

    def __init__(self, session: Session, call: Call, answers: Sequence[Answering], owner: object) -> None:
        self._session = session
        self._call = call
        self._answers = answers
        self._kept_alive = owner
        self._events: Inbox[IndexedEvent] = Inbox()
        self._waiting = deque(range(len(answers)))
        self._open = set(range(len(answers)))
        self._began = False
        self._error: BaseException | None = None
        # Not bound to self, so that a stream that is dropped frees the engine.
        self._abort = weakref.finalize(self, _abort_all, session, [request.request_id for request, _ in answers])
        self._abort.atexit = False

    def submit_next(self) -> None:
        """Queues the next answer; errors as in `Session.submit`."""
        index = self._waiting[0]
        self._session.submit(self._answers[index][0], _sink(self._events, index))
        self._waiting.popleft()

    def __aiter__(self) -> AsyncIterator[tuple[int, OutputChunk]]:
        return self

    async def __anext__(self) -> tuple[int, OutputChunk]:
        error, self._error = self._error, None
        if error is not None:
            raise error
        if self._events.awaited:
            raise RuntimeError("the stream is being read by another task")
        try:
            event = await self._next_event()
            if event is not None:
                return self._read(event)
        except BaseException:
            self._end()
            raise
        raise StopAsyncIteration

    def pending(self) -> list[tuple[int, OutputChunk]]:
        """Returns the chunks that have arrived and takes them off the stream, without waiting; may be empty.

        An error that has arrived is raised when the stream is read next.
        """
        chunks: list[tuple[int, OutputChunk]] = []
        while self._open and self._events:
            try:
                chunks.append(self._read(self._events.pop()))
            except Exception as error:
                self._error = error
                self._end()
        return chunks

    def _read(self, event: IndexedEvent) -> tuple[int, OutputChunk]:
        index, at, content = event
        chunk = accepted(self._session, self._call, self._answers[index][1], at, content)
        self._began = True
        if chunk.output is not None:
            self._open.remove(index)
        return index, chunk

    async def _next_event(self) -> IndexedEvent | None:
        """Returns the next event; None once no answer is open, also where `aclose` ended the wait."""
        while self._open:
            self._session.check_process()
            full = self._began and bool(self._waiting) and not self._submit_waiting()
            if self._events:
                return self._events.pop()
            deadline = self._call.deadline
            if deadline.passed():
                raise timed_out(self._session, self._call, num_tokens(self._answers))
            left = deadline.left()
            await self._events.wait(left if not full else RETRY if left is None else min(left, RETRY))
        return None

    def _submit_waiting(self) -> bool:
        """Queues the answers that are not queued yet; False if there are too few places."""
        with timely(self._session, self._call, num_tokens(self._answers)), suppress(QueueFullError):
            while self._waiting:
                self.submit_next()
        return not self._waiting

    async def aclose(self) -> None:
        """Aborts what still runs, and ends the stream for a task that reads it; may be called again."""
        self._end()

    def _end(self) -> None:
        self._open.clear()
        self._abort()
        self._events.wake()


def _abort_all(session: Session, request_ids: Sequence[str]) -> None:
    for request_id in request_ids:
        session.abort(request_id)


def _sink(events: Inbox[IndexedEvent], index: int) -> Callable[[Event], None]:
    """Returns what receives an answer's events in the engine's thread."""
    return lambda event: events.put((index, time.monotonic(), event))


async def submit_answers(session: Session, call: Call, owner: object = None, wait: bool = False) -> AnswerStream:
    """Makes a call's requests, queues the first, and returns the stream of their answers.

    Args:
        session: Runs the requests.
        call: The call; its requests are made in a thread.
        owner: The ensemble, which the stream keeps alive. Default: nothing.
        wait: Wait for a place in the queue instead of being refused. Default False.

    Raises:
        RequestError: The prompt or an argument is wrong.
        QueueFullError: There is no place in the queue.
        EngineStuckError: A step has been running for too long.
        EngineClosedError: The ensemble is closed.
        RequestTimeoutError: It took too long.
    """
    with timely(session, call):
        answers = await call.deadline.wait(asyncio.to_thread(call.ask))
        stream = AnswerStream(session, call, answers, owner)
        while not await _submitted(stream, wait):
            if call.deadline.passed():
                raise TimeoutError
    return stream


async def _submitted(stream: AnswerStream, wait: bool) -> bool:
    """Queues a stream's next answer; False, after a moment, if there is no place and it may wait."""
    try:
        stream.submit_next()
        return True
    except QueueFullError:
        if not wait:
            raise
        await asyncio.sleep(RETRY)
        return False


async def astream_events(session: Session, call: Call, wait: bool = False) -> AsyncIterator[OutputChunk]:
    """`stream_events` for event loops; closing or cancelling it aborts the request.

    Args:
        session: Runs the request.
        call: The call, of one answer.
        wait: Wait for a place in the queue instead of being refused. Default False.
    """
    stream = await submit_answers(session, call, wait=wait)
    try:
        async for _, chunk in stream:
            yield chunk
    finally:
        await stream.aclose()


async def acollect_choices(session: Session, call: Call, owner: object) -> list[RequestOutput]:
    """`collect_choices` for event loops; cancelling it aborts the requests."""
    stream = await submit_answers(session, call, owner)
    try:
        outputs = {index: chunk.output async for index, chunk in stream if chunk.output is not None}
    finally:
        await stream.aclose()
    return [outputs[index] for index in sorted(outputs)]


async def acollect_batch(session: Session, calls: Sequence[Call], places: int) -> list[RequestOutput]:
    """`collect_batch` for event loops; cancelling it aborts the requests.

    Args:
        session: Runs the requests.
        calls: The calls, of one answer each.
        places: How many are submitted at once.
    """
    room = asyncio.Semaphore(places)

    async def run(call: Call) -> RequestOutput:
        with timely(session, call):
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
