"""Requests that are given up or take too long, also while a forward hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import contextmanager

import pytest
from conftest import ensemble_of, random_pair
from holding import held, idle

from gac_core import (
    QueueFullError,
    RequestTimeoutError,
    SamplingParams,
)
from gac_langchain import GaCLLM
from gac_llamaindex import GaCLLM as IndexLLM

# ---- requests that are given up


def queued(one, prompt="Where", **asked):
    """Queues a request; returns its id."""
    request, _ = one._input_processor.request(prompt, None, {"max_tokens": 2, **asked})
    one._session.submit(request, lambda event: None)
    return request.request_id


def test_requests_that_are_given_up_take_no_room():
    with ensemble_of([random_pair("llama")], max_batch_size=2, max_queue=4) as one:
        mailbox = one._session.worker._mailbox
        with held(one) as waiting:
            running = queued(one)
            assert waiting.wait(30)
            for _ in range(300):
                one._session.abort(queued(one))
                assert (len(mailbox.pending), len(mailbox.held), len(mailbox.aborted)) == (0, 1, 0)
            waits = [queued(one) for _ in range(5)]
            with pytest.raises(QueueFullError):
                one.generate("Who")
            # What the engine holds keeps its place until it is dropped; what waits is gone at once.
            for _ in range(3):
                one._session.abort(running)
            with pytest.raises(QueueFullError):
                queued(one)
            assert mailbox.aborted == {running}
            one._session.abort(waits[0])
            queued(one)
        assert idle(one)
        assert one.generate("Who", max_tokens=2).tokens
        assert one._members[0]._slots.num_running == 0


async def test_cancelled_calls_take_no_room():
    with ensemble_of([random_pair("llama")], max_batch_size=2, max_queue=4) as one:
        with held(one) as waiting:
            task = asyncio.create_task(one.agenerate("Who", max_tokens=2))
            assert await asyncio.to_thread(waiting.wait, 30)
            for _ in range(20):
                tasks = [asyncio.create_task(one.agenerate("Where", max_tokens=2)) for _ in range(5)]
                while len(one._session.worker._mailbox.pending) < 5:
                    await asyncio.sleep(0.001)
                for each in tasks:
                    each.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert not one._session.worker._mailbox.pending
                assert len(one._session.worker._mailbox.held) == 1
        assert (await task).tokens
        assert await asyncio.to_thread(idle, one)


def test_whoever_waits_for_room_gets_it_when_a_request_is_given_up():
    with ensemble_of([random_pair("llama")], max_batch_size=1, max_queue=1) as one:
        mailbox, outputs = one._session.worker._mailbox, []

        def labels():
            return [entry.request.label for entry in mailbox.pending.values()]

        def ask():
            outputs.extend(one.generate_batch(["Where"], max_tokens=1, request_ids=["late"]))

        with held(one) as waiting:
            queued(one)
            assert waiting.wait(30)
            waits = queued(one)
            thread = threading.Thread(target=ask)
            thread.start()
            time.sleep(0.05)
            assert labels() == [waits]
            one._session.abort(waits)
            until = time.monotonic() + 10
            while not labels() and time.monotonic() < until:
                time.sleep(0.005)
            assert labels() == ["late"]
        thread.join(10)
        assert [output.request_id for output in outputs] == ["late"]


# ---- timeouts


def timed_calls(one, timeout):
    async def streamed():
        return [chunk async for chunk in one.astream("Who", timeout=timeout, max_tokens=400)]

    return {
        "generate": lambda: one.generate("Who", timeout=timeout, max_tokens=400),
        "stream": lambda: list(one.stream("Who", SamplingParams(timeout=timeout, max_tokens=400))),
        "generate_batch": lambda: one.generate_batch(["Who"] * 3, timeout=timeout, max_tokens=400),
        "agenerate": lambda: asyncio.run(one.agenerate("Who", timeout=timeout, max_tokens=400)),
        "astream": lambda: asyncio.run(streamed()),
        "agenerate_batch": lambda: asyncio.run(one.agenerate_batch(["Who"] * 3, timeout=timeout, max_tokens=400)),
        "langchain": lambda: GaCLLM(ensemble=one, timeout=timeout, max_tokens=400).invoke("Who"),
        "langchain call": lambda: GaCLLM(ensemble=one, max_tokens=400).invoke("Who", timeout=timeout),
        "langchain configuration": lambda: GaCLLM(ensemble=one, max_tokens=400).invoke(
            "Who", {"configurable": {"gac_timeout": timeout}}
        ),
        "llamaindex": lambda: IndexLLM(ensemble=one, timeout=timeout, complete_as="text").complete("Who"),
        "llamaindex call": lambda: IndexLLM(ensemble=one, complete_as="text").complete("Who", timeout=timeout),
    }


WAYS = list(timed_calls(None, None))


@pytest.mark.parametrize("way", WAYS)
def test_a_timeout_ends_a_call_whose_forward_hangs(both, way, caplog):
    with held(both, 1):
        began = time.monotonic()
        with pytest.raises(
            RequestTimeoutError, match=r"timeout=0.1\) with 0 tokens .*forward of member 'm1'"
        ) as caught:
            timed_calls(both, 0.1)[way]()
        assert time.monotonic() - began < 5
    assert isinstance(caught.value, TimeoutError)
    assert (caught.value.member, caught.value.tokens, caught.value.timeout) == ("m1", 0, 0.1)
    assert caught.value.seconds >= 0.1
    assert caught.value.request_id in [record.request_id for record in caplog.records]
    assert idle(both)
    assert both.generate("Who", max_tokens=2).tokens


def test_a_timeout_counts_what_was_written_and_frees_the_engine(both):
    with pytest.raises(RequestTimeoutError) as caught:
        both.generate("Who", max_tokens=10**6, timeout=0.3)
    assert caught.value.tokens > 0
    assert idle(both)


def test_a_timeout_counts_from_the_call(both):
    """A reader that pauses for longer hears of nothing that came too late."""
    stream = both.stream("Who", max_tokens=10**5, timeout=0.2)
    next(stream)
    time.sleep(0.3)
    with pytest.raises(RequestTimeoutError):
        list(stream)
    assert idle(both)


@contextmanager
def slow_encoding(one):
    """Prompts are encoded only after the block."""
    choices, free = one._input_processor.choices, threading.Event()
    one._input_processor.choices = lambda *given, **named: free.wait(60) and choices(*given, **named)
    try:
        yield
    finally:
        free.set()
        del one._input_processor.choices


@pytest.mark.parametrize("way", WAYS)
def test_a_timeout_counts_encoding_and_queueing(way):
    with ensemble_of([random_pair("llama"), random_pair("qwen2", seed=1)], max_batch_size=1, max_queue=0) as one:
        if "batch" in way:
            running = one.stream("Who", max_tokens=10**5)
            next(running)
            with pytest.raises(RequestTimeoutError, match="0 tokens"):
                timed_calls(one, 0.1)[way]()
            running.close()
            assert idle(one)
        with slow_encoding(one):
            # asyncio.run would wait for the thread that encodes: see the next test.
            if "agenerate" not in way and way != "astream":
                with pytest.raises(RequestTimeoutError, match="0 tokens"):
                    timed_calls(one, 0.1)[way]()
        assert idle(one)
        assert one.generate("Who", max_tokens=2, timeout=60).tokens


async def test_a_timeout_counts_encoding_in_event_loops(both):
    with slow_encoding(both), pytest.raises(RequestTimeoutError, match="0 tokens"):
        await both.agenerate("Who", timeout=0.05)
    assert (await both.agenerate("Who", timeout=60, max_tokens=2)).tokens


def test_a_timeout_changes_no_answer(both):
    asked = {"max_tokens": 12, "temperature": 1.0, "seed": 1}
    one, other = both.generate("Who", **asked), both.generate("Who", timeout=600, **asked)
    assert (one.text, one.tokens, one.stats.settings) == (other.text, other.tokens, other.stats.settings)
    chain = GaCLLM(ensemble=both)
    assert chain._identity() == GaCLLM(ensemble=both, timeout=3)._identity()
