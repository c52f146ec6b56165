"""A member that fails or hangs, a caller that leaves and a fork harm neither the engine nor other requests."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import textwrap
import threading
import time
from contextlib import contextmanager

import pytest
from conftest import EMBEDDED, ROOT, ensemble_of, random_pair, start
from langchain_core.callbacks import BaseCallbackHandler
from llama_index.core.llms import ChatMessage

from gac_core import (
    GaCError,
    Grammar,
    MemberError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    RequestTimeoutError,
    SamplingParams,
)
from gac_langchain import GaCLLM
from gac_llamaindex import GaCLLM as IndexLLM

PROMPTS = [f"Where is bridge {place}" for place in range(8)]
BAD = 3


@pytest.fixture(scope="module")
def both():
    """Two random members, whose texts do not end."""
    with ensemble_of([random_pair("llama"), random_pair("qwen2", seed=1)]) as loaded:
        yield loaded


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


# ---- one request of eight fails


class Fault:
    """Raises at the k-th call for which ``hit`` says that it is about the bad request."""

    def __init__(self, inner, hit, error, at=3):
        self.inner, self.hit, self.error, self.left = inner, hit, error, at

    def __call__(self, *given, **named):
        if self.hit(*given, **named):
            self.left -= 1
            if self.left <= 0:
                raise self.error
        return self.inner(*given, **named)


def in_runner(both, monkeypatch, error, bad):
    """A forward raises while the bad request is in it, alone or with others."""
    member = both._members[1]
    key = bad.request_id

    def hit(rows):
        slot = member._slots.slot(key)
        return any(row.slot == slot for row in rows if slot is not None)

    monkeypatch.setattr(member._runner, "forward", Fault(member._runner.forward, hit, error))


def in_alignment(both, monkeypatch, error, bad):
    poll = both._worker._engine._decoder._poll
    inner, logits_of_bad = poll._wanted, []

    def wanted(request, member, *rest):
        logits = inner(request, member, *rest)
        if request is bad and member == 1:
            logits_of_bad.append(logits)
        return logits

    def hit(logits):
        last = logits_of_bad[-1:]
        return any((logits == row).all(-1).any() for part in last for row in part)

    monkeypatch.setattr(poll, "_wanted", wanted)
    monkeypatch.setattr(poll._alignments[1], "align", Fault(poll._alignments[1].align, hit, error))


def in_sampler(both, monkeypatch, error, bad):
    monkeypatch.setattr(bad.sampler, "pick", Fault(bad.sampler.pick, lambda *given: True, error))


def in_combining(both, monkeypatch, error, bad):
    decoder = both._worker._engine._decoder
    hit = lambda request, *rest: request is bad  # noqa: E731
    monkeypatch.setattr(decoder, "_facts", Fault(decoder._facts, hit, error))


def in_commit(both, monkeypatch, error, bad):
    writer = both._worker._engine._decoder._writer
    hit = lambda text, data, own: text is bad.texts[1]  # noqa: E731
    monkeypatch.setattr(writer, "commits", [writer.commits[0], Fault(writer.commits[1], hit, error)])


def in_detokenizer(both, monkeypatch, error, bad):
    monkeypatch.setattr(bad.detokenizer, "push", Fault(bad.detokenizer.push, lambda data: True, error))


def in_processing(both, monkeypatch, error, bad):
    poll = both._worker._engine._decoder._poll
    hit = lambda request, member, *rest: request is bad and member == 1  # noqa: E731
    monkeypatch.setattr(poll, "_wanted", Fault(poll._wanted, hit, error))


def in_drafting(both, monkeypatch, error, bad):
    decoder = both._worker._engine._decoder
    monkeypatch.setattr(decoder, "_room", Fault(decoder._room, lambda request: request is bad, error))


NAMED = [in_runner, in_alignment, in_commit, in_processing]
PLACES = [*NAMED, in_sampler, in_combining, in_detokenizer, in_drafting]


def run_together(both, asked, prepare=None):
    """The texts, or errors, of requests that run together from the first to the last step."""
    events = [[] for _ in PROMPTS]
    done = threading.Semaphore(0)
    requests = [both._intake.request(prompt, None, asked) for prompt in PROMPTS]
    with held(both) as waiting:
        # While a first request is held all the others queue up, so that they begin in one step.
        first = start(both, "Who", max_tokens=1)
        assert waiting.wait(30)
        if prepare is not None:
            prepare(requests[BAD][0])
        for (request, _), own in zip(requests, events, strict=True):

            def sink(event, own=own):
                own.append(event)
                if isinstance(event, GaCError) or event.output is not None:
                    done.release()

            both._worker.submit(request, sink)
    list(first)
    for _ in PROMPTS:
        assert done.acquire(timeout=60)
    return [
        own[-1] if isinstance(own[-1], GaCError) else b"".join(token for chunk in own for token in chunk.tokens)
        for own in events
    ]


@pytest.mark.parametrize("error", [RuntimeError("broken"), SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("place", PLACES)
def test_only_the_request_at_fault_fails(both, monkeypatch, caplog, place, error):
    asked = {"max_tokens": 10, "temperature": 1.0, "seed": 3}
    want = run_together(both, asked)
    got = run_together(both, asked, lambda bad: place(both, monkeypatch, error, bad))
    failed = got.pop(BAD)
    want.pop(BAD)
    assert got == want
    assert isinstance(failed, GaCError), failed
    assert failed.__cause__ is error
    if place in NAMED:
        assert isinstance(failed, MemberError)
        assert failed.member == "m1"
        assert type(error).__name__ in str(failed)
    (record,) = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.request_id == failed.request_id
    assert record.exc_info[1] is error
    monkeypatch.undo()
    assert idle(both)
    assert both.generate("Who", max_tokens=2).tokens


def test_a_mask_that_cannot_be_made_is_one_requests_error(both, monkeypatch):
    asked = {"max_tokens": 10, "grammar": Grammar.regex("[a-z ]{40}")}
    want = run_together(both, asked)

    def prepare(bad):
        monkeypatch.setattr(bad.constraint, "mask", Fault(bad.constraint.mask, lambda *given: True, ValueError("no")))

    got = run_together(both, asked, prepare)
    failed = got.pop(BAD)
    want.pop(BAD)
    assert got == want
    assert isinstance(failed.__cause__, ValueError)


def test_a_receiver_that_raises_ends_its_own_request(both):
    heard, other = [], start(both, "Where is it", max_tokens=8)
    request, _ = both._intake.request("Who", None, {"max_tokens": 400})

    def sink(event):
        heard.append(event)
        raise SystemExit(1)

    both._worker.submit(request, sink)
    assert list(other)[-1].output is not None
    assert idle(both)
    assert len(heard) == 1


def test_a_step_that_fails_ends_what_runs_and_nothing_else(both, monkeypatch):
    fault = Fault(both._worker._engine.step, lambda: True, SystemExit(2))
    monkeypatch.setattr(both._worker._engine, "step", fault)
    streams = [start(both, prompt, max_tokens=400) for prompt in ("Who", "Where")]
    errors = []
    for stream in streams:
        with pytest.raises(GaCError) as caught:
            list(stream)
        errors.append(caught.value)
    assert errors[0] is not errors[1]
    assert all(isinstance(error.__cause__, SystemExit) for error in errors)
    assert errors[0].request_id != errors[1].request_id
    monkeypatch.undo()
    assert both.generate("Who", max_tokens=2).tokens


@pytest.mark.parametrize("what", ["CUDA out of memory", "can't allocate memory: you tried", None])
def test_want_of_memory_has_a_remedy(both, monkeypatch, what):
    error = MemoryError() if what is None else RuntimeError(what)

    def forward(rows):
        raise error

    monkeypatch.setattr(both._members[1]._runner, "forward", forward)
    with pytest.raises(MemberError, match=r"'m1' failed: .*smaller max_batch_size") as caught:
        both.generate("Who", max_tokens=2)
    assert caught.value.__cause__ is error


async def test_causes_reach_every_caller(both, monkeypatch):
    error = OSError("the disk is gone")

    def forward(rows):
        raise error

    monkeypatch.setattr(both._members[0]._runner, "forward", forward)
    chain, index = GaCLLM(ensemble=both, max_tokens=2), IndexLLM(ensemble=both, max_tokens=2, complete_as="text")
    for call in (
        lambda: both.generate("Who"),
        lambda: list(both.stream("Who")),
        lambda: both.generate_batch(["Who"] * 2),
        lambda: asyncio.run(both.agenerate("Who")),
        lambda: asyncio.run(both.agenerate_batch(["Who"] * 2)),
        lambda: chain.invoke("Who"),
        lambda: list(chain.stream("Who")),
        lambda: chain.batch(["Who"] * 2),
        lambda: asyncio.run(chain.ainvoke("Who")),
        lambda: index.complete("Who"),
        lambda: list(index.stream_complete("Who")),
        lambda: asyncio.run(index.acomplete("Who")),
    ):
        with pytest.raises(MemberError, match="'m0' failed: OSError: the disk is gone") as caught:
            await asyncio.to_thread(call)
        assert caught.value.__cause__ is error
        assert caught.value.request_id


# ---- requests that are given up


def queued(one, prompt="Where", **asked):
    """Queues a request; returns its id."""
    request, _ = one._intake.request(prompt, None, {"max_tokens": 2, **asked})
    one._worker.submit(request, lambda event: None)
    return request.request_id


def test_requests_that_are_given_up_take_no_room():
    with ensemble_of([random_pair("llama")], max_batch_size=2, max_queue=4) as one:
        worker = one._worker
        with held(one) as waiting:
            running = queued(one)
            assert waiting.wait(30)
            for _ in range(300):
                worker.abort(queued(one))
                assert (len(worker._pending), len(worker._held), len(worker._aborted)) == (0, 1, 0)
            waits = [queued(one) for _ in range(5)]
            with pytest.raises(QueueFullError):
                one.generate("Who")
            # What the engine holds keeps its place until it is dropped; what waits is gone at once.
            for _ in range(3):
                worker.abort(running)
            with pytest.raises(QueueFullError):
                queued(one)
            assert worker._aborted == {running}
            worker.abort(waits[0])
            queued(one)
        assert idle(one)
        assert one.generate("Who", max_tokens=2).tokens
        assert one._members[0]._slots.busy == 0


async def test_cancelled_calls_take_no_room():
    with ensemble_of([random_pair("llama")], max_batch_size=2, max_queue=4) as one:
        with held(one) as waiting:
            task = asyncio.create_task(one.agenerate("Who", max_tokens=2))
            assert await asyncio.to_thread(waiting.wait, 30)
            for _ in range(20):
                tasks = [asyncio.create_task(one.agenerate("Where", max_tokens=2)) for _ in range(5)]
                while len(one._worker._pending) < 5:
                    await asyncio.sleep(0.001)
                for each in tasks:
                    each.cancel()
                await asyncio.gather(*tasks, return_exceptions=True)
                assert not one._worker._pending
                assert len(one._worker._held) == 1
        assert (await task).tokens
        assert await asyncio.to_thread(idle, one)


def test_whoever_waits_for_room_gets_it_when_a_request_is_given_up():
    with ensemble_of([random_pair("llama")], max_batch_size=1, max_queue=1) as one:
        worker, outputs = one._worker, []

        def labels():
            return [entry.request.label for entry in worker._pending.values()]

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
            worker.abort(waits)
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
        with pytest.raises(RequestTimeoutError, match=r"timeout=0.1\), 0 tokens .*forward of member 'm1'") as caught:
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
    prepared, free = one._intake._prepared, threading.Event()
    one._intake._prepared = lambda *given, **named: free.wait(60) and prepared(*given, **named)
    try:
        yield
    finally:
        free.set()
        del one._intake._prepared


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


@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf"), "3", True, 1e300])
def test_timeouts_are_checked(value):
    with pytest.raises(RequestError, match="timeout"):
        SamplingParams(timeout=value)


# ---- ids and logs


async def test_callers_name_their_requests(both, caplog):
    caplog.set_level(logging.INFO, "gac_core")
    asked = {"max_tokens": 1}
    assert both.generate("Who", request_id="a", **asked).request_id == "a"
    assert list(both.stream("Who", request_id="a", **asked))[-1].output.request_id == "a"
    assert (await both.agenerate("Who", request_id="b", **asked)).request_id == "b"
    for outputs in (
        both.generate_batch(["Who"] * 3, request_ids=["c", "c", None], **asked),
        await both.agenerate_batch(["Who"] * 3, request_ids=["c", "c", None], **asked),
    ):
        assert [output.request_id for output in outputs][:2] == ["c", "c"]
        assert len(outputs[2].request_id) == 32
    with pytest.raises(PromptTooLongError) as caught:
        both.generate("secret " * 5000, request_id="long")
    assert caught.value.request_id == "long"
    with pytest.raises(RequestError):
        both.generate("Who", request_id="wrong", temperature="secret")
    told = {record.request_id: record for record in caplog.records if hasattr(record, "request_id")}
    assert set(told) == {"long", "wrong"}
    assert told["long"].member == "m0"
    assert told["long"].levelno == logging.INFO
    assert "secret" not in caplog.text


@pytest.mark.parametrize("value", ["", 3, "a\nb", "x" * 201])
def test_request_ids_are_checked(both, value):
    with pytest.raises(RequestError, match="request_id"):
        both.generate("Who", request_id=value)
    with pytest.raises(RequestError, match="request_id"):
        both.generate_batch(["Who"], request_ids=[value])
    with pytest.raises(RequestError, match="1 request_ids for 2 prompts"):
        both.generate_batch(["Who", "Where"], request_ids=["a"])


def test_frameworks_name_their_requests(both, monkeypatch):
    labels, submit = [], both._worker.submit
    monkeypatch.setattr(
        both._worker,
        "submit",
        lambda request, *how, **limits: labels.append(request.label) or submit(request, *how, **limits),
    )

    class Runs(BaseCallbackHandler):
        def __init__(self):
            self.ids = []

        def on_llm_start(self, *given, run_id, **named):
            self.ids.append(str(run_id))

    runs = Runs()
    chain = GaCLLM(ensemble=both, max_tokens=1)
    chain.invoke("Who", {"callbacks": [runs]})
    assert labels == runs.ids
    chain.invoke("Who", request_id="mine")
    list(chain.stream("Who", request_id="mine"))
    chain.batch(["Who", "Where"], request_id="mine")
    index = IndexLLM(ensemble=both, max_tokens=1, complete_as="text")
    index.complete("Who", request_id="mine")
    list(index.stream_complete("Who", request_id="mine"))
    assert labels[1:] == ["mine", "mine", "mine/0", "mine/1", "mine", "mine"]


def test_chats_name_their_requests(ensemble, monkeypatch):
    from gac_langchain import ChatGaC

    labels, submit = [], ensemble._worker.submit
    monkeypatch.setattr(
        ensemble._worker,
        "submit",
        lambda request, *how, **limits: labels.append(request.label) or submit(request, *how, **limits),
    )
    chat = ChatGaC(ensemble=ensemble, max_tokens=1)
    told = chat.invoke("Who")
    assert labels[0] in told.id
    chat.invoke("Who", request_id="mine")
    list(chat.stream("Who", request_id="mine"))
    index = IndexLLM(ensemble=ensemble, max_tokens=1)
    index.chat([ChatMessage("Who")], request_id="mine")
    assert labels[1:] == ["mine"] * 3
    key = chat._get_llm_string(stop=None)
    assert key == chat._get_llm_string(stop=None, request_id="mine", timeout=3.0)


# ---- processes


def run_code(code, timeout=120):
    """Runs code in a process of its own; returns its lines."""
    code = f"""
import atexit, faulthandler, os, sys, threading, time
began = []
# Registered first, so that it runs after all that the library does at exit.
atexit.register(lambda: began and print(time.monotonic() - began[0]))
faulthandler.dump_traceback_later({timeout - 10}, exit=True)
from gac_core import Ensemble, EngineClosedError
ensemble = Ensemble.load({EMBEDDED[:2]!r}, dtype="float32")
{textwrap.dedent(code)}
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=timeout, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_python_exits_at_once_while_a_forward_hangs():
    lines = run_code(
        """
        entered = threading.Event()
        ensemble._members[0]._runner.forward = lambda rows: entered.set() or threading.Event().wait()
        threading.Thread(target=lambda: ensemble.generate("Who", max_tokens=5), daemon=True).start()
        assert entered.wait(60)
        began.append(time.monotonic())
        """
    )
    assert float(lines[-1]) < 5


def test_an_ensemble_that_is_left_waits_only_for_its_timeout():
    lines = run_code(
        """
        entered = threading.Event()
        ensemble._members[0]._runner.forward = lambda rows: entered.set() or threading.Event().wait()
        threading.Thread(target=lambda: ensemble.generate("Who", max_tokens=5), daemon=True).start()
        assert entered.wait(60)
        start = time.monotonic()
        ensemble.close(0.2)
        print(time.monotonic() - start)
        """
    )
    assert 0.2 <= float(lines[-1]) < 5


def test_python_exits_in_the_middle_of_a_text():
    """A daemon thread that comes back into Python from a forward while it shuts down may end the process."""
    run_code(
        """
        stream = ensemble.stream("passages " * 30, max_tokens=10**6, temperature=5.0, seed=1)
        next(stream)
        """
    )


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_fork_meets_no_lock_of_its_parent():
    lines = run_code(
        """
        import copy, signal
        from gac_core import tokenizer
        stream = ensemble.stream("passages " * 30, max_tokens=10**6, temperature=5.0, seed=1)
        next(stream)
        # As if other threads held them at the moment of the fork.
        compiler = ensemble._intake._compiler
        locks = [tokenizer._LARGE_LOCK, compiler._lock, compiler._building, ensemble._worker._lock]
        ready, leave = threading.Event(), threading.Event()
        def hold():
            for lock in locks:
                lock.acquire()
            ready.set()
            leave.wait()
            for lock in reversed(locks):
                lock.release()
        holder = threading.Thread(target=hold)
        holder.start()
        ready.wait()
        # The thread of its timer is missing in the child as well.
        faulthandler.cancel_dump_traceback_later()
        faulthandler.register(signal.SIGUSR1)
        child = os.fork()
        if child == 0:
            import asyncio
            told = []
            async def astreamed():
                async for _ in ensemble.astream("x"):
                    pass
            for call in (
                lambda: ensemble.generate("x"), lambda: ensemble.generate("x", timeout=5),
                lambda: next(ensemble.stream("x")), lambda: ensemble.generate_batch(["x"]),
                lambda: asyncio.run(ensemble.agenerate("x")), lambda: asyncio.run(ensemble.agenerate_batch(["x"])),
                lambda: asyncio.run(astreamed()), lambda: ensemble.encode("x"), lambda: ensemble.count_tokens("x"),
                lambda: next(stream),
            ):
                try:
                    call()
                except EngineClosedError as error:
                    told.append(error)
            assert ensemble.closed
            assert copy.deepcopy(ensemble) is ensemble
            ensemble.close()
            stream.close()
            del stream
            print("child", len(told), flush=True)
            sys.exit(0)
        until = time.monotonic() + 20
        while (status := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < until:
            time.sleep(0.01)
        if status[0] == 0:
            os.kill(child, signal.SIGUSR1)
            time.sleep(1)
            os.kill(child, signal.SIGKILL)
        leave.set()
        holder.join()
        print("status", status[1] if status[0] else "hangs", flush=True)
        print(bool(next(stream)))
        """
    )
    assert lines == ["child 10", "status 0", "True"]
