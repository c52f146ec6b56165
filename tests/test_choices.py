"""Several answers to one prompt, and requests that are queued before their answers are read."""

from __future__ import annotations

import asyncio
import gc

import pytest
from conftest import LONG_PROMPT, QUESTION, ensemble_of, random_pair
from faulty import faulty_ensemble, requests_of
from holding import held, idle

from gac_core import EngineClosedError, MemberError, QueueFullError, RequestError, RequestTimeoutError, SamplingParams
from gac_core.decoding.sampler import choice_seed
from gac_core.model.slots import MIN_PREFIX_TOKENS

PROMPT = LONG_PROMPT
SAMPLED = {"temperature": 1.0, "seed": 7, "max_tokens": 12}


def run(coroutine):
    """Runs a coroutine on a loop of its own."""
    return asyncio.run(coroutine)


def by_sync(ensemble, prompt, **asked):
    return ensemble.generate_choices(prompt, **asked)


def by_async(ensemble, prompt, **asked):
    return run(ensemble.agenerate_choices(prompt, **asked))


def by_stream(ensemble, prompt, **asked):
    async def read():
        outputs = {}
        texts = {}
        async for index, chunk in await ensemble.asubmit(prompt, **asked):
            assert index not in outputs
            texts[index] = texts.get(index, "") + chunk.text
            if chunk.output is not None:
                outputs[index] = chunk.output
        assert {index: output.text for index, output in outputs.items()} == texts
        return [outputs[index] for index in sorted(outputs)]

    return run(read())


WAYS = pytest.mark.parametrize("way", [by_sync, by_async, by_stream])


@WAYS
def test_each_answer_is_that_of_its_seed_and_the_prompt_is_read_once(both, way):
    outputs = way(both, PROMPT, n=4, request_id="four", **SAMPLED)
    assert [output.seed for output in outputs] == [choice_seed(7, index) for index in range(4)]
    assert len({output.tokens for output in outputs}) > 1
    for output in outputs:
        assert output.request_id == "four"
        assert output.tokens == both.generate(PROMPT, **{**SAMPLED, "seed": output.seed}).tokens
    assert outputs[0].tokens == both.generate(PROMPT, **SAMPLED).tokens
    for output in outputs[1:]:
        for member in output.stats.members.values():
            assert member.reused_tokens == member.prompt_tokens - 1 > MIN_PREFIX_TOKENS


@WAYS
def test_greedy_answers_are_equal(ensemble, way):
    outputs = way(ensemble, QUESTION, n=3, max_tokens=10)
    assert [output.text for output in outputs] == [ensemble.generate(QUESTION, max_tokens=10).text] * 3
    assert [output.seed for output in outputs] == [None] * 3


def test_a_request_without_a_seed_draws_one_for_each_answer(both):
    outputs = both.generate_choices(PROMPT, n=2, temperature=1.0, max_tokens=6)
    assert outputs[1].seed == choice_seed(outputs[0].seed, 1)
    again = both.generate_choices(PROMPT, n=2, temperature=1.0, max_tokens=6)
    assert again[0].seed != outputs[0].seed


def test_streams_interleave(both):
    async def order():
        return [index async for index, _ in await both.asubmit(PROMPT, n=3, drafts=False, **SAMPLED)]

    indices = run(order())
    assert indices[0] == 0
    assert sorted(set(indices)) == [0, 1, 2]
    assert indices != sorted(indices)


@WAYS
def test_more_answers_than_places_wait_for_them(way):
    with ensemble_of([random_pair("llama")], max_batch_size=1, max_queue=1) as one:
        outputs = way(one, PROMPT, n=4, **SAMPLED)
        assert [output.seed for output in outputs] == [choice_seed(7, index) for index in range(4)]


def test_other_methods_require_one_answer(both):
    params = SamplingParams(n=2, max_tokens=1)
    for call in (
        lambda: both.generate(PROMPT, params),
        lambda: next(both.stream(PROMPT, params)),
        lambda: both.generate_batch([PROMPT], params),
        lambda: run(both.agenerate(PROMPT, params)),
        lambda: run(both.agenerate_batch([PROMPT], params)),
    ):
        with pytest.raises(RequestError, match="call generate_choices"):
            call()
    with pytest.raises(RequestError, match="leave out n"):
        both.score(PROMPT, " a", params)
    for n in (0, 129, True, 1.0):
        with pytest.raises(RequestError, match="n must be"):
            SamplingParams(n=n)


def test_submitting_raises_what_can_be_refused():
    with ensemble_of([random_pair("llama")], max_batch_size=1, max_queue=0) as one:

        async def refused():
            for wrong in ({"temperature": -1}, {"gate": "nobody"}, {"logit_bias": {10**9: 1}}, {"unknown": 1}):
                with pytest.raises(RequestError):
                    await one.asubmit(PROMPT, **wrong)
            with pytest.raises(RequestError):
                await one.asubmit([{"role": "nobody", "content": "a"}])
            stream = await one.asubmit(PROMPT, max_tokens=400)
            with pytest.raises(QueueFullError):
                await one.asubmit(PROMPT, max_tokens=1)
            await stream.aclose()

        run(refused())
        assert idle(one)
    with pytest.raises(EngineClosedError):
        run(one.asubmit(PROMPT))


def endless(talkers):
    """Parameters of answers that take longer than `idle` waits."""
    tokenizer = talkers._members[talkers.names.index(talkers.gate)].tokenizer
    return {"max_tokens": 3900, "drafts": False, "logit_bias": {next(iter(tokenizer.end_ids)): -100}}


async def never_read(stream):
    pass


async def read_one(stream):
    await stream.__anext__()


async def read_of_all(stream):
    seen = set()
    async for index, _ in stream:
        seen.add(index)
        if len(seen) == 3:
            return


@pytest.mark.parametrize("end", ["aclose", "cancel", "drop"])
@pytest.mark.parametrize("until", [never_read, read_one, read_of_all])
def test_a_stream_that_is_given_up_frees_the_engine(talkers, until, end):
    async def give_up():
        stream = await talkers.asubmit(PROMPT, n=3, temperature=1.0, seed=1, **endless(talkers))
        await until(stream)
        if end == "aclose":
            await stream.aclose()
            await stream.aclose()
            assert [each async for each in stream] == []
        elif end == "cancel":

            async def read():
                async for _ in stream:
                    pass

            task = asyncio.create_task(read())
            await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert [each async for each in stream] == []

    run(give_up())
    gc.collect()
    assert idle(talkers)
    assert talkers.health().requests == 0


def test_cancelling_the_submission_frees_the_engine(talkers):
    async def cancel(steps):
        task = asyncio.create_task(talkers.agenerate_choices(PROMPT, n=2, **endless(talkers)))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    for steps in range(4):
        run(cancel(steps))
    assert idle(talkers)


@WAYS
def test_a_timeout_ends_all_answers(both, way):
    with held(both, after=8), pytest.raises(RequestTimeoutError) as caught:
        way(both, PROMPT, n=3, temperature=1.0, max_tokens=2000, timeout=0.3, request_id="late")
    assert caught.value.request_id == "late"
    assert caught.value.tokens > 0
    assert idle(both)


@WAYS
def test_tokens_are_counted_while_answers_wait_for_places(way):
    with ensemble_of([random_pair("llama")], max_batch_size=1, max_queue=0) as one:
        end = next(iter(one._members[0].tokenizer.end_ids))
        with held(one, after=40), pytest.raises(RequestTimeoutError) as caught:
            way(one, PROMPT, n=2, max_tokens=900, logit_bias={end: -100}, drafts=False, timeout=1.0)
        assert caught.value.tokens > 1


def test_closing_the_ensemble_ends_its_streams():
    with ensemble_of([random_pair("llama")]) as one:

        async def read():
            stream = await one.asubmit(PROMPT, n=2, max_tokens=2000)
            await stream.__anext__()
            one.close()
            with pytest.raises(EngineClosedError):
                async for _ in stream:
                    pass
            assert [each async for each in stream] == []

        run(read())


@WAYS
def test_an_error_of_one_answer_ends_all(way):
    with faulty_ensemble() as (one, executor):
        second = choice_seed(7, 1)

        def script(name, request_id):
            request = requests_of(one).get(request_id)
            return "raise" if request is not None and request.seed == second and request.num_committed else None

        executor.script = script
        with pytest.raises(MemberError, match="a kernel failed"):
            way(one, PROMPT, n=3, **{**SAMPLED, "max_tokens": 400})
        assert idle(one)


@pytest.mark.parametrize("until", [never_read, read_one])
def test_closing_a_stream_ends_the_task_that_reads_it(talkers, until):
    async def close():
        stream = await talkers.asubmit(PROMPT, n=2, **endless(talkers))
        await until(stream)
        with held(talkers) as waiting:
            reader = asyncio.create_task(read_of_all(stream))
            while not (waiting.is_set() and stream._events.awaited):
                await asyncio.sleep(0.001)
            with pytest.raises(RuntimeError, match="read by another task"):
                await stream.__anext__()
            assert not reader.done()
            await stream.aclose()
            await asyncio.wait_for(reader, 10)

    run(close())
    assert idle(talkers)


def test_chunks_that_have_arrived_are_read_without_waiting(both):
    async def read():
        stream = await both.asubmit(PROMPT, n=2, **SAMPLED)
        texts, chunks = {0: "", 1: ""}, []
        async for index, chunk in stream:
            await asyncio.sleep(0.02)
            chunks.append(stream.pending())
            for place, each in [(index, chunk), *chunks[-1]]:
                texts[place] += each.text
        assert any(chunks)
        assert stream.pending() == []
        assert [texts[0], texts[1]] == [output.text for output in both.generate_choices(PROMPT, n=2, **SAMPLED)]

    run(read())


@pytest.mark.parametrize("error", [EngineClosedError, ValueError])
def test_an_error_that_has_arrived_is_raised_when_the_stream_is_read_next(both, error):
    async def read():
        stream = await both.asubmit(PROMPT, n=2, max_tokens=500)
        first = await stream.__anext__()
        processor = stream._answers[0][1]
        inner, left = processor.read, iter(range(2))

        def read(chunk):
            if next(left, None) is None:
                raise error("a defect")
            return inner(chunk)

        processor.read = read
        chunks = []
        for _ in range(1000):
            chunks += stream.pending()
            if stream._error:
                break
            await asyncio.sleep(0.005)
        assert [index for index, _ in [first, *chunks]] == [0, 0, 0]
        with pytest.raises(error, match="a defect"):
            await stream.__anext__()
        assert [each async for each in stream] == []

    run(read())
    assert idle(both)
