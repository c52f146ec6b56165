"""Delivers a request's events from the engine's thread to the thread that submitted it.

Callers wait here, at most until the request's deadline, whatever the engine's thread does.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial

from gac_core.engine.calls import Answering, Call, reported
from gac_core.engine.mailbox import Event
from gac_core.engine.output_processor import OutputProcessor
from gac_core.engine.session import Session
from gac_core.errors import GaCError, QueueFullError, RequestTimeoutError
from gac_core.output import OutputChunk, RequestOutput

RETRY = 0.01
"""Seconds between two attempts to get a place in the queue."""

IndexedEvent = tuple[int, float, Event]
"""The index of an answer among those of its call, when its event came, by `time.monotonic`, and the event."""


@contextmanager
def timely(session: Session, call: Call, num_tokens: int = 0) -> Iterator[None]:
    """Turns a `TimeoutError` into the request's error, and reports errors."""
    with reported(call.label):
        try:
            yield
        except TimeoutError as error:
            if call.deadline.timeout is None or isinstance(error, GaCError):
                raise
            member = session.running_member()
            raise RequestTimeoutError(call.deadline.spent, call.deadline.timeout, num_tokens, member) from None


def timed_out(session: Session, call: Call, num_tokens: int) -> RequestTimeoutError:
    """Returns the error of a request that did not end in time, reported."""
    try:
        with timely(session, call, num_tokens):
            raise TimeoutError
    except RequestTimeoutError as error:
        return error


def accepted(session: Session, call: Call, processor: OutputProcessor, at: float, event: Event) -> OutputChunk:
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
        raise timed_out(session, call, processor.num_tokens)
    return processor.read(event)


def stream_events(session: Session, call: Call, owner: object) -> Iterator[OutputChunk]:
    """Yields the chunks of a request's answer; closing the iterator aborts the request.

    The request is made at once, and queued when the first chunk is read.

    Args:
        session: Runs the request.
        call: The call, of one answer.
        owner: The ensemble, which the iterator keeps alive.

    Raises:
        RequestError: The prompt or an argument is wrong.
        QueueFullError: There is no place in the queue.
        EngineClosedError: The ensemble is closed.
        RequestTimeoutError: It took too long.
        GaCError: Whatever ended the request.
    """
    return _chunks(_events(session, call, _asked(session, call), owner))


def _chunks(events: Generator[tuple[int, OutputChunk]]) -> Iterator[OutputChunk]:
    with closing(events):
        for _, chunk in events:
            yield chunk


def collect_choices(session: Session, call: Call, owner: object) -> list[RequestOutput]:
    """Returns the answers of one call in their order; arguments and errors as in `stream_events`.

    The first error aborts them all.
    """
    events = _events(session, call, _asked(session, call), owner)
    with closing(events):
        outputs = {index: chunk.output for index, chunk in events if chunk.output is not None}
    return [outputs[index] for index in sorted(outputs)]


def _asked(session: Session, call: Call) -> Sequence[Answering]:
    with timely(session, call):
        return call.deadline.within(call.ask)


def _events(
    session: Session, call: Call, answers: Sequence[Answering], owner: object
) -> Generator[tuple[int, OutputChunk]]:
    """Yields chunks with the index of their answer.

    Once the first answer has a token, the others are queued as there are places: they find the prompt in the KV caches.
    """
    _kept_alive = owner
    events: queue.SimpleQueue[IndexedEvent] = queue.SimpleQueue()

    def sink(index: int, event: Event) -> None:
        events.put((index, time.monotonic(), event))

    with reported(call.label):
        session.submit(answers[0][0], partial(sink, 0))
    num_queued, num_open = 1, len(answers)
    began = False
    try:
        while num_open:
            session.check_process()
            wait = call.deadline.left()
            if began and num_queued < len(answers):
                num_queued = _queued(session, call, answers, num_queued, sink)
                wait = RETRY if wait is None else min(wait, RETRY)
            try:
                index, at, event = events.get(timeout=wait)
            except queue.Empty:
                if not call.deadline.passed():
                    # The wait ended early.
                    continue
                raise timed_out(session, call, num_tokens(answers)) from None
            chunk = accepted(session, call, answers[index][1], at, event)
            began = True
            yield index, chunk
            num_open -= chunk.output is not None
    finally:
        for request, _ in answers:
            session.abort(request.request_id)


def _queued(
    session: Session, call: Call, answers: Sequence[Answering], first: int, sink: Callable[[int, Event], None]
) -> int:
    """Queues answers, from the first that is not, as there are places; returns the first that still is not."""
    with timely(session, call, num_tokens(answers)), suppress(QueueFullError):
        while first < len(answers):
            session.submit(answers[first][0], partial(sink, first))
            first += 1
    return first


def num_tokens(answers: Sequence[Answering]) -> int:
    """Returns how many union tokens some answers have so far."""
    return sum(processor.num_tokens for _, processor in answers)


def collect_batch(session: Session, calls: Sequence[Call]) -> list[RequestOutput]:
    """Returns the answers of several requests in their order; the first error aborts them all.

    Args:
        session: Runs the requests, which wait for places in the queue.
        calls: The calls, of one answer each.

    Raises:
        RequestError: A prompt or an argument is wrong.
        EngineClosedError: The ensemble is closed.
        RequestTimeoutError: One took too long.
        GaCError: Whatever ended one of the requests.
    """
    events: queue.SimpleQueue[tuple[int, float, Event]] = queue.SimpleQueue()
    outputs: dict[int, RequestOutput] = {}
    submitted: list[Answering] = []

    def sink(place: int, event: Event) -> None:
        events.put((place, time.monotonic(), event))

    for call in calls:
        submitted += _asked(session, call)
    try:
        for place, call in enumerate(calls):
            with timely(session, call):
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
                raise timed_out(session, calls[first], submitted[first][1].num_tokens) from None
            output = accepted(session, calls[place], submitted[place][1], at, event).output
            if output is not None:
                outputs[place] = output
        return [outputs[place] for place in range(len(calls))]
    except BaseException:
        for request, _ in submitted:
            session.abort(request.request_id)
        raise
