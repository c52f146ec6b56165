"""Calls with time limits in the threads of devices."""

from __future__ import annotations

import threading
import time

import pytest
from holding import soon

from gac_core.executor.device_thread import DeviceThread, TimedCall, run_calls


class Call(TimedCall):
    """A call that waits for an event, if one is given, and records what happens to it."""

    def __init__(self, limit=60.0, until=None):
        super().__init__(limit)
        self.until, self.events, self.thread = until, [], None

    def run(self):
        self.thread = threading.current_thread()
        if self.until is not None:
            self.until.wait()
        self.events.append("ran")

    def give_up(self):
        self.events.append("given up")

    def returned_late(self):
        self.events.append("late")


@pytest.fixture
def threads():
    made = [DeviceThread(f"test-{index}") for index in range(2)]
    yield made
    for thread in made:
        thread.close()


def test_calls_of_one_device_run_one_after_another_in_one_thread(threads):
    calls = [Call() for _ in range(3)]
    run_calls({threads[0]: calls})
    assert [call.events for call in calls] == [["ran"]] * 3
    assert len({call.thread for call in calls}) == 1
    again = Call()
    run_calls({threads[0]: [again]})
    assert again.thread is calls[0].thread


def test_devices_run_at_the_same_time(threads):
    meeting = threading.Barrier(2)

    class Meeting(Call):
        def run(self):
            meeting.wait(30)
            self.events.append("met")

    calls = [Meeting(), Meeting()]
    run_calls({thread: [call] for thread, call in zip(threads, calls, strict=True)})
    assert [call.events for call in calls] == [["met"]] * 2


def test_a_call_that_is_given_up_keeps_its_thread_and_those_behind_it_get_another(threads):
    free = threading.Event()
    first, stuck, behind, other = Call(), Call(0.1, free), Call(0.1), Call()
    run_calls({threads[0]: [first, stuck, behind], threads[1]: [other]})
    assert [first.events, stuck.events, behind.events, other.events] == [["ran"], ["given up"], ["ran"], ["ran"]]
    assert behind.thread is not stuck.thread
    free.set()
    assert soon(lambda: stuck.events == ["given up", "ran", "late"])
    assert soon(lambda: not stuck.thread.is_alive())
    after = Call()
    run_calls({threads[0]: [after]})
    assert after.thread is behind.thread


def test_each_call_has_its_own_limit_wherever_others_wait(threads):
    free = threading.Event()
    short, long = Call(0.1, free), Call(0.8, free)
    given_up = []
    short.give_up, long.give_up = lambda: given_up.append("short"), lambda: given_up.append("long")
    began = time.monotonic()
    run_calls({threads[0]: [long], threads[1]: [short]})
    assert time.monotonic() - began >= 0.8
    free.set()
    assert given_up == ["short", "long"]


def test_the_limit_of_a_call_counts_from_its_beginning(threads):
    free = threading.Event()
    threading.Timer(0.4, free.set).start()
    first, second = Call(60.0, free), Call(0.3, free)
    run_calls({threads[0]: [first, second]})
    assert [first.events, second.events] == [["ran"], ["ran"]]


def test_without_a_limit(threads):
    call = Call(float("inf"))
    run_calls({threads[0]: [call]})
    assert call.events == ["ran"]
