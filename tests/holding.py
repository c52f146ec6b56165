"""Members whose forwards are held, and engines that come to rest."""

from __future__ import annotations

import threading
import time
from contextlib import contextmanager


@contextmanager
def held(one, index=0):
    """Holds a member's forwards until the end of the block; yields once one has begun waiting."""
    runner, forward = one._members[index]._runner, one._members[index]._runner.forward
    free, waiting = threading.Event(), threading.Event()

    def wait(rows):
        waiting.set()
        assert free.wait(60)
        return forward(rows)

    runner.forward = wait
    try:
        yield waiting
    finally:
        free.set()
        runner.forward = forward


def idle(one, within=10.0):
    """Whether nothing is pending or held soon."""
    until = time.monotonic() + within
    while (one._worker._pending or one._worker._held) and time.monotonic() < until:
        time.sleep(0.005)
    return not (one._worker._pending or one._worker._held or one._worker._aborted)
