"""Many callers at once, streams given up, event loops that keep ticking."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import EMBEDDED, LONG_PROMPT, QUESTION, ensemble_of, pair
from holding import busy, idle, ticks_while_held

from gac_core import GaCError, RequestError

ASKED = {"max_tokens": 16, "temperature": 2.0, "seed": 3}


def test_threads_get_their_solo_answers(ensemble):
    prompts = [QUESTION, "Who", "In which town", "14:15"] * 8
    solo = {str(p): ensemble.generate(p, **ASKED).tokens for p in prompts[:4]}
    with ThreadPoolExecutor(32) as pool:
        outputs = list(pool.map(lambda p: ensemble.generate(p, **ASKED), prompts))
    assert [o.tokens for o in outputs] == [solo[str(p)] for p in prompts]


async def test_tasks_get_their_solo_answers(ensemble):
    prompts = [QUESTION, "Who", "In which town"] * 3
    solo = {str(p): ensemble.generate(p, **ASKED).tokens for p in prompts[:3]}
    outputs = await asyncio.gather(*(ensemble.agenerate(p, **ASKED) for p in prompts))
    assert [o.tokens for o in outputs] == [solo[str(p)] for p in prompts]


def test_an_abandoned_stream_frees_the_engine():
    with ensemble_of([pair(EMBEDDED[0])]) as one:
        stream = one.stream(LONG_PROMPT, temperature=5.0, seed=1, max_tokens=900)
        next(stream)
        stream.close()
        assert idle(one)
        assert one._members[0]._slots.num_running == 0


async def test_a_cancelled_task_frees_the_engine():
    with ensemble_of([pair(EMBEDDED[0])]) as one:
        task = asyncio.create_task(one.agenerate(LONG_PROMPT, temperature=5.0, seed=1, max_tokens=900))
        assert await asyncio.to_thread(busy, one)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(idle, one)
        assert one._members[0]._slots.num_running == 0


async def test_the_event_loop_runs_while_a_forward_does(ensemble):
    asked = {"temperature": 5.0, "seed": 1, "max_tokens": 10}
    task = await ticks_while_held(ensemble, lambda: ensemble.agenerate(LONG_PROMPT, **asked))
    assert len((await task).tokens) == 10


def test_requests_join_between_steps_and_share_forwards(ensemble):
    engine = ensemble._session.worker._engine
    sizes, decode = [], engine._decoder.decode
    engine._decoder.decode = lambda batch: sizes.append(len(batch)) or decode(batch)
    try:
        ensemble.generate_batch([QUESTION] * 5, **ASKED)
    finally:
        engine._decoder.decode = decode
    assert max(sizes) >= 4


def test_more_requests_than_the_batch_holds_wait_their_turn():
    with ensemble_of([pair(EMBEDDED[0])], max_batch_size=2) as one:
        solo = one.generate("In which", **ASKED).tokens
        assert [o.tokens for o in one.generate_batch(["In which"] * 5, **ASKED)] == [solo] * 5


def test_counts_and_logprobs(ensemble):
    output = ensemble.generate(QUESTION, logprobs=3, max_tokens=16, drafts=False)
    assert output.tokens
    ended = output.finish_reason == "stop"
    assert output.usage.completion_tokens == len(output.tokens)
    assert output.stats.steps == len(output.tokens) + ended
    assert output.stats.steps_ensembled == output.stats.steps
    assert len(output.logprobs) == output.stats.steps
    for entry, token in zip(output.logprobs, [*output.tokens, b""], strict=False):
        assert entry.token == token == entry.top[0][0]
        assert entry.logprob == entry.top[0][1] <= 0
        assert len(entry.top) == 3
    for member in output.stats.members.values():
        assert member.forwards == output.stats.steps
        assert member.seconds > 0
        assert member.tokens + member.reused_tokens >= member.prompt_tokens
    assert ensemble.generate(QUESTION, **ASKED).logprobs is None


async def test_an_error_ends_its_whole_batch():
    """What the others would still have written is not written."""
    asked = {"temperature": 5.0, "seed": 1, "max_tokens": 900}
    with ensemble_of([pair(EMBEDDED[0])]) as one:
        submit, submitted = one._session.submit, []

        def the_first_fails(request, sink, *how, **limits):
            submit(request, sink, *how, **limits)
            submitted.append(sink)
            if len(submitted) == 3:
                submitted[0](GaCError("out of luck"))

        one._session.submit = the_first_fails
        with pytest.raises(GaCError, match="out of luck"):
            one.generate_batch([LONG_PROMPT] * 3, **asked)
        assert idle(one)
        submitted.clear()
        with pytest.raises(GaCError, match="out of luck"):
            await one.agenerate_batch([LONG_PROMPT] * 3, **asked)
        assert await asyncio.to_thread(idle, one)
        del one._session.submit
        with pytest.raises(RequestError, match="context"):
            await one.agenerate_batch([*[LONG_PROMPT] * 2, "word " * 3000], **asked)
        assert await asyncio.to_thread(idle, one)


async def test_a_cancelled_batch_frees_the_engine():
    with ensemble_of([pair(EMBEDDED[0])]) as one:
        task = asyncio.create_task(one.agenerate_batch([LONG_PROMPT] * 3, temperature=5.0, seed=1, max_tokens=900))
        assert await asyncio.to_thread(busy, one)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await asyncio.to_thread(idle, one)


async def test_asynchronous_batches_say_what_others_say(ensemble):
    prompts = [QUESTION, "Who", "In which town"] * 3
    together = await ensemble.agenerate_batch(prompts, **ASKED)
    assert [o.tokens for o in together] == [o.tokens for o in ensemble.generate_batch(prompts, **ASKED)]
    assert await ensemble.agenerate_batch([]) == ensemble.generate_batch([]) == []


def test_a_loop_that_was_closed_harms_nobody(ensemble):
    loop = asyncio.new_event_loop()
    stream = ensemble.astream("Once", max_tokens=200, temperature=1.0, seed=1)
    loop.run_until_complete(anext(stream))
    loop.close()  # with the request still running, as a server that is killed in mid-answer leaves it
    assert ensemble.generate(QUESTION, **ASKED).text == ensemble.generate(QUESTION, **ASKED).text
    other = asyncio.new_event_loop()
    other.run_until_complete(stream.aclose())
    other.close()
    assert idle(ensemble)


def test_a_stream_keeps_its_ensemble():
    assert "".join(chunk.text for chunk in ensemble_of([pair(EMBEDDED[0])]).stream(QUESTION, max_tokens=4))


async def test_batches_wait_for_room():
    one = ensemble_of([pair(EMBEDDED[0])], max_batch_size=2, max_queue=0)
    batches = await asyncio.gather(*(one.agenerate_batch([QUESTION] * 3, max_tokens=4) for _ in range(2)))
    assert len({output.text for batch in batches for output in batch}) == 1


def test_threads_outlive_the_main_one():
    """One that only decodes, and one that needs the threads of a grammar's masks."""
    code = (
        "import threading, gac_core\n"
        f"ensemble = gac_core.Ensemble.load([{EMBEDDED[0]!r}])\n"
        "def ask(grammar):\n"
        "    print(ensemble.generate('In which', max_tokens=60, grammar=grammar).finish_reason.value)\n"
        "for grammar in (None, gac_core.Grammar.regex('[a-z ]{300,400}')):\n"
        "    threading.Thread(target=ask, args=[grammar]).start()\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    reasons = out.stdout.split()
    assert len(reasons) == 2, out.stderr
    assert set(reasons) <= {"stop", "length"}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_is_told_to_load_its_own():
    code = (
        "import os, sys, gac_core\n"
        f"ensemble = gac_core.Ensemble.load([{EMBEDDED[0]!r}])\n"
        "if os.fork() == 0:\n"
        "    try:\n"
        "        ensemble.generate('x')\n"
        "    except gac_core.EngineClosedError as error:\n"
        "        print(error, flush=True)\n"
        "    os._exit(0)\n"
        "os.wait()\n"
        "print(ensemble.generate('x', max_tokens=1).usage.completion_tokens)\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    assert "start processes by 'spawn'\n1" in out.stdout


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_loads_its_own():
    """Two threads: OpenMP's workers of the parent are what the child must not wait for."""
    code = (
        "import os, sys, torch, gac_core\n"
        "torch.set_num_threads(2)\n"
        "def made():\n"
        f"    return gac_core.Ensemble.shared([{EMBEDDED[0]!r}], dtype='float32')\n"
        "parent = made()\n"
        "print(parent.generate('In which', max_tokens=4).text.encode(), flush=True)\n"
        "if os.fork() == 0:\n"
        "    with made() as own:\n"
        "        print(own.generate('In which', max_tokens=4).text.encode(), flush=True)\n"
        "    os._exit(own is parent)\n"
        "print(os.wait()[1])\n"
        "print(parent.generate('In which', max_tokens=4).text.encode())\n"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=100)
    first, child, status, again = out.stdout.splitlines()
    assert (first, status) == (child, "0")
    assert again == first
