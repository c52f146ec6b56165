"""Members that share one loaded model, and the executor that runs them."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from architectures import random_model
from chunks import IDS, ask_of, logits
from conftest import random_pair

from gac_core import ModelLoadError
from gac_core.executor.local import LocalExecutor
from gac_core.model.chunk import Chunk
from gac_core.model.loaded import LoadedModel
from gac_core.model.member import Member
from gac_core.model.options import MemberOptions


@pytest.mark.parametrize("name", ["llama", "gemma3 with mixed layers", "gpt2"])
def test_members_over_one_model_compute_what_each_computes_alone(name):
    model, tokenizer = random_pair(name)
    options = [MemberOptions(), MemberOptions(deterministic=True), MemberOptions(context=100)]
    alone = [logits(Member("m", LoadedModel(random_pair(name)[0], tokenizer, "m"), each), IDS) for each in options]
    loaded = LoadedModel(model, tokenizer, "m")
    members = [Member("m", loaded, each) for each in options]
    # Interleaved: each decodes while the others are in the middle of their texts.
    for start, end in [(0, 12), *((index, index + 1) for index in range(12, len(IDS)))]:
        for member, want in zip(members, alone, strict=True):
            (result,) = member.forward([Chunk("r", start, tuple(IDS[start:end]), end - start)])
            torch.testing.assert_close(result.logits, want[start:end], rtol=2e-4, atol=2e-4)
    for member, want in zip(members, alone, strict=True):
        member.release("r")
        torch.testing.assert_close(logits(member, IDS, "s"), want, rtol=2e-4, atol=2e-4)


def test_deterministic_logits_do_not_depend_on_who_shares_the_model():
    model, tokenizer = random_pair("llama")
    exact = MemberOptions(deterministic=True)
    want = logits(Member("m", LoadedModel(random_pair("llama")[0], tokenizer, "m"), exact), IDS)
    loaded = LoadedModel(model, tokenizer, "m")
    member, other = Member("m", loaded, exact), Member("m", loaded)
    logits(other, IDS[::-1])
    assert torch.equal(logits(member, IDS), want)


def test_the_plain_forward_of_a_shared_model_stays_plain():
    """Runners leave no hook on the model."""
    model, tokenizer = random_pair("llama")
    ids = torch.tensor([IDS])
    with torch.inference_mode():
        want = model(input_ids=ids).logits
        member = Member.from_model(model, tokenizer, "m")
        logits(member, IDS)
        assert torch.equal(model(input_ids=ids).logits, want)
    assert not model.get_output_embeddings()._forward_pre_hooks


def test_two_threads_may_use_one_model():
    model, tokenizer = random_pair("llama")
    loaded = LoadedModel(model, tokenizer, "m")
    texts = [[3 + (index * step) % 50 for index in range(24)] for step in (3, 7, 11, 13)]
    want = [logits(Member("m", LoadedModel(random_pair("llama")[0], tokenizer, "m")), text) for text in texts]
    # Two members with two threads each.
    members = [Member("m", loaded), Member("m", loaded)]
    barrier = threading.Barrier(4)

    def run(index):
        barrier.wait()
        return [logits(members[index % 2], texts[index], f"{index}-{turn}") for turn in range(12)]

    with ThreadPoolExecutor(4) as threads:
        for got, expected in zip(threads.map(run, range(4)), want, strict=True):
            for each in got:
                torch.testing.assert_close(each, expected, rtol=2e-4, atol=2e-4)
    assert [member._slots.num_running for member in members] == [0, 0]


def test_a_member_that_is_dropped_without_close_frees_its_cache():
    """The model goes on without it."""
    model, tokenizer = random_pair("llama")
    member = Member.from_model(model, tokenizer, "m")
    logits(member, IDS)
    cache = weakref.ref(member._runner._cache.stores()[0])
    del member
    gc.collect()
    assert cache() is None


def test_close_waits_for_a_running_forward(monkeypatch):
    model, tokenizer = random_pair("llama")
    member = Member.from_model(model, tokenizer, "m")
    running, free, forward = threading.Event(), threading.Event(), member._runner.forward

    def wait(rows):
        running.set()
        free.wait()
        return forward(rows)

    monkeypatch.setattr(member._runner, "forward", wait)
    with ThreadPoolExecutor(2) as threads:
        result = threads.submit(member.forward, [Chunk("r", 0, tuple(IDS), 1)])
        assert running.wait(60)
        closing = threads.submit(member.close)
        assert not closing.done()
        free.set()
        closing.result(60)
        assert isinstance(result.result(60)[0].logits, torch.Tensor)


def test_a_member_is_not_loaded_while_a_forward_of_its_model_hangs(monkeypatch):
    monkeypatch.setattr("gac_core.model.loaded.IDLE_SECONDS", 0.1)
    loaded = LoadedModel(*random_pair("llama"), "m")
    with ThreadPoolExecutor() as threads:
        # As a forward does.
        with loaded.lock, pytest.raises(ModelLoadError, match=r"cannot load member 'm': a forward .* for 0.1 s"):
            threads.submit(Member, "m", loaded).result(60)
        assert threads.submit(Member, "m", loaded).result(60).name == "m"


def test_members_are_added_and_removed_by_count():
    model, tokenizer = random_pair("llama")
    one, other = (Member("m", LoadedModel(model, tokenizer, "m")) for _ in range(2))
    executor = LocalExecutor([one])
    executor.add_member(one)
    executor.add_member(other)
    calls = {member.member_id: [ask_of(member)] for member in (one, other)}
    assert list(executor.forward(calls)) == [one.member_id, other.member_id]
    executor.release("r")
    executor.remove_member(one.member_id)
    executor.forward(calls)
    executor.release("r")
    executor.remove_member(one.member_id)
    with pytest.raises(KeyError):
        executor.forward(calls)
    assert [member._slots.num_running for member in (one, other)] == [0, 0]


def test_each_device_has_a_thread():
    _, tokenizer = random_pair("llama")
    one, other = (Member.from_model(random_model("llama", tokenizer, seed), tokenizer, "m") for seed in range(2))
    other.device = torch.device("cpu", 0)
    names: list[str] = []
    for member in (one, other):
        forward = member._runner.forward
        member._runner.forward = lambda rows, run=forward: names.append(threading.current_thread().name) or run(rows)
    executor = LocalExecutor([one])
    calls = {member.member_id: [ask_of(member)] for member in (one, other)}
    executor.forward({one.member_id: calls[one.member_id]})
    executor.add_member(other)
    executor.forward(calls)
    executor.remove_member(other.member_id)
    assert list(executor._threads) == [one.device]
    executor.release("r")
    executor.forward({one.member_id: calls[one.member_id]})
    names = [name.rpartition("-")[0] for name in names]
    assert (names[0], names[-1]) == ("gac-cpu", "gac-cpu")
    assert sorted(names[1:3]) == ["gac-cpu", "gac-cpu:0"]
    executor.close()
