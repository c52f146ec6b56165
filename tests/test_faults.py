"""A member that fails or hangs, a caller that leaves and a fork harm neither the engine nor other requests."""

from __future__ import annotations

import asyncio
import logging
import threading

import pytest
from conftest import start
from holding import held, idle

from gac_core import (
    GaCError,
    Grammar,
    MemberError,
)
from gac_core.decoding import lookup, selection
from gac_core.executor import evaluator
from gac_langchain import GaCLLM
from gac_llamaindex import GaCLLM as IndexLLM

PROMPTS = [f"Where is bridge {place}" for place in range(8)]
BAD = 3


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
        slot = member._slots.find(key)
        return slot is not None and any(row.slot == slot.index for row in rows)

    monkeypatch.setattr(member._runner, "forward", Fault(member._runner.forward, hit, error))


def in_alignment(both, monkeypatch, error, bad):
    inner, logits_of_bad = evaluator.wanted_rows, []

    def wanted(ask, logits):
        logits = inner(ask, logits)
        if is_about(ask, bad):
            logits_of_bad.append(logits)
        return logits

    def hit(logits):
        last = logits_of_bad[-1:]
        return any((logits == row).all(-1).any() for part in last for row in part)

    alignment = bad.voices[1].member.alignment
    monkeypatch.setattr(evaluator, "wanted_rows", wanted)
    monkeypatch.setattr(alignment, "align", Fault(alignment.align, hit, error))


def is_about(ask, bad):
    """Whether an ask is about the second voice of a request."""
    return ask.chunk.request_id == bad.request_id and ask.alignment is bad.voices[1].member.alignment


def in_sampler(both, monkeypatch, error, bad):
    monkeypatch.setattr(bad.sampler, "pick", Fault(bad.sampler.pick, lambda *given: True, error))


def in_combining(both, monkeypatch, error, bad):
    monkeypatch.setattr(selection, "combine", Fault(selection.combine, lambda place: place.request is bad, error))


def in_commit(both, monkeypatch, error, bad):
    member = bad.voices[1].member
    fault = Fault(member.commit, lambda text, data, own: text is bad.voices[1].text, error)
    monkeypatch.setitem(vars(member), "commit", fault)


def in_detokenizer(both, monkeypatch, error, bad):
    monkeypatch.setattr(bad.detokenizer, "push", Fault(bad.detokenizer.push, lambda data: True, error))


def in_processing(both, monkeypatch, error, bad):
    fault = Fault(evaluator.wanted_rows, lambda ask, logits: is_about(ask, bad), error)
    monkeypatch.setattr(evaluator, "wanted_rows", fault)


def in_drafting(both, monkeypatch, error, bad):
    hit = lambda request, kind: request is bad  # noqa: E731
    monkeypatch.setattr(lookup, "max_draft_tokens", Fault(lookup.max_draft_tokens, hit, error))


NAMED = [in_runner, in_alignment, in_commit, in_processing]
PLACES = [*NAMED, in_sampler, in_combining, in_detokenizer, in_drafting]


def run_together(both, asked, prepare=None):
    """The texts, or errors, of requests that run together from the first to the last step."""
    events = [[] for _ in PROMPTS]
    done = threading.Semaphore(0)
    requests = [both._input_processor.request(prompt, None, asked) for prompt in PROMPTS]
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

            both._session.submit(request, sink)
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
    request, _ = both._input_processor.request("Who", None, {"max_tokens": 400})

    def sink(event):
        heard.append(event)
        raise SystemExit(1)

    both._session.submit(request, sink)
    assert list(other)[-1].output is not None
    assert idle(both)
    assert len(heard) == 1


def test_a_step_that_fails_ends_what_runs_and_nothing_else(both, monkeypatch):
    fault = Fault(both._session.worker._engine.step, lambda: True, SystemExit(2))
    monkeypatch.setattr(both._session.worker._engine, "step", fault)
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
