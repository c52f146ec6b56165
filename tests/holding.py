"""Members whose forwards are held, and engines that begin, run and come to rest."""

from __future__ import annotations

import asyncio
import itertools
import threading
import time
from contextlib import contextmanager


@contextmanager
def held(one, index=0, after=0):
    """Holds a member's forwards until the end of the block; yields an event that is set once one waits.

    Args:
        one: The ensemble.
        index: The member's place in it. Default the first.
        after: How many forwards are not held. Default 0.
    """
    runner, forward = one._members[index]._runner, one._members[index]._runner.forward
    free, waiting, begun = threading.Event(), threading.Event(), itertools.count()

    def wait(rows):
        if next(begun) < after:
            return forward(rows)
        waiting.set()
        free.wait()
        return forward(rows)

    runner.forward = wait
    try:
        yield waiting
    finally:
        free.set()
        runner.forward = forward


def soon(condition, within=10.0) -> bool:
    """Whether a condition holds within some seconds."""
    until = time.monotonic() + within
    while not condition() and time.monotonic() < until:
        time.sleep(0.005)
    return condition()


def busy(one) -> bool:
    """Whether the engine begins a request within some seconds."""
    return soon(lambda: one._session.worker._engine.busy)


def idle(one) -> bool:
    """Whether the engine holds no request, and none waits for it, within some seconds."""
    worker = one._session.worker
    box = worker._mailbox
    return soon(lambda: not (box.pending or box.held or worker._engine.busy)) and not box.aborted


async def ticks_while_held(one, ask):
    """Asserts that an event loop runs other tasks while the forward of a call made on it is held.

    Args:
        one: The ensemble; its first member's forwards are held meanwhile.
        ask: Returns the call's coroutine.

    Returns:
        The call's task, which goes on.
    """
    with held(one) as waiting:
        task = asyncio.create_task(ask())
        # On a loop that the call blocks this comes back only when the held forward has failed.
        while not (waiting.is_set() or task.done()):
            await asyncio.sleep(0.001)
        for _ in range(20):
            await asyncio.sleep(0.001)
        assert waiting.is_set()
        assert not task.done()
    return task
