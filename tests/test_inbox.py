"""Events on their way from an engine's thread to readers on an event loop."""

from __future__ import annotations

import asyncio
import gc
import threading
import time

from gac_core.engine import inbox as module
from gac_core.engine.inbox import Inbox


def in_thread(function) -> None:
    thread = threading.Thread(target=function)
    thread.start()
    thread.join()


async def test_one_call_in_the_loop_brings_the_events_of_all_readers(monkeypatch):
    loop, calls = asyncio.get_running_loop(), []
    inner = loop.call_soon_threadsafe
    monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (calls.append(args), inner(*args)))
    inboxes = [Inbox() for _ in range(3)]
    in_thread(lambda: [inbox.put((number, place)) for number in range(4) for place, inbox in enumerate(inboxes)])
    for place, inbox in enumerate(inboxes):
        await inbox.wait(10)
        assert [inbox.pop() for _ in range(len(inbox))] == [(number, place) for number in range(4)]
    assert len(calls) == 1
    in_thread(lambda: inboxes[1].put("more"))
    await inboxes[1].wait(10)
    assert inboxes[1].pop() == "more"
    assert len(calls) == 2


async def test_a_wait_ends_with_its_time():
    began = time.monotonic()
    await Inbox().wait(0.02)
    assert 0.015 < time.monotonic() - began < 5


async def test_no_event_is_lost_between_threads():
    inboxes = [Inbox() for _ in range(4)]
    threads = [
        threading.Thread(target=lambda inbox=inbox: [inbox.put(number) for number in range(5000)]) for inbox in inboxes
    ]

    async def read(inbox) -> list[int]:
        found = []
        while len(found) < 5000:
            await inbox.wait(10)
            assert len(inbox)
            found += [inbox.pop() for _ in range(len(inbox))]
        return found

    for thread in threads:
        thread.start()
    assert await asyncio.gather(*map(read, inboxes)) == [list(range(5000))] * 4
    for thread in threads:
        thread.join()


def test_events_for_a_closed_loop_are_dropped():
    async def make() -> Inbox:
        return Inbox()

    inbox = asyncio.run(make())
    inbox.put("late")
    inbox.put("later")
    assert len(inbox) == len(inbox._carrier._events) == 0
    del inbox
    gc.collect()
    assert not [loop for loop in module._carriers if loop.is_closed()]
