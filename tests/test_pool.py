"""The model pool: models are loaded once, shared between members, and freed with their last lease."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from architectures import random_model
from conftest import EMBEDDED, ROOT, random_pair
from transformers import AutoModelForCausalLM

from gac_core import ConfigError, EngineClosedError, EnsembleConfig, GaCError, MemberConfig, ModelLoadError
from gac_core.executor.local import LocalExecutor
from gac_core.model.chunk import Chunk
from gac_core.model.loaded import LoadedModel
from gac_core.model.member import Member
from gac_core.model.options import MemberOptions
from gac_core.model.pool import ModelPool, default_pool


def config(*models, **settings) -> EnsembleConfig:
    members = [model if isinstance(model, MemberConfig) else MemberConfig(model, dtype="float32") for model in models]
    return EnsembleConfig(tuple(members), **settings)


def model_of(member: Member):
    return member._runner._model


def logits(member: Member, ids, request_id="r") -> torch.Tensor:
    """The logits of all positions, computed as a prompt and three decode steps."""
    parts = [(0, ids[:-3]), *((start, ids[start : start + 1]) for start in range(len(ids) - 3, len(ids)))]
    results = [member.forward([Chunk(request_id, start, tuple(part), len(part))])[0] for start, part in parts]
    member.release(request_id)
    return torch.cat([result.logits for result in results])


@pytest.fixture
def loads(monkeypatch):
    """Models as they are loaded, without keeping them alive."""
    found: list[weakref.ref] = []
    load = AutoModelForCausalLM.from_pretrained

    def counted(*given, **named):
        result = load(*given, **named)
        found.append(weakref.ref(result[0]))
        return result

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", counted)
    return found


IDS = [3 + (7 * index) % 50 for index in range(24)]


# ---- what is shared


def test_ensembles_that_differ_in_combination_share_members(loads):
    pool = ModelPool()
    first = pool.acquire(config(*EMBEDDED[:2]))
    renamed = MemberConfig(EMBEDDED[1], name="b", weight=3.0, dtype="float32")
    second = pool.acquire(config(EMBEDDED[0], renamed, threshold=0.5, gate="b", max_batch_size=2, combine="geometric"))
    assert len(loads) == 2
    assert [member.name for member in first.members] == ["ash", "birch"]
    assert [member.name for member in second.members] == ["ash", "b"]
    assert [member.tokenizer.name for member in second.members] == ["ash", "b"]
    for one, other in zip(first.members, second.members, strict=True):
        assert one.member_id == other.member_id
        assert one._slots is other._slots
    second.members[1].forward([Chunk("r", 0, tuple(IDS), 1)])
    second.members[1].release("r")
    (result,) = first.members[1].forward([Chunk("s", 0, tuple(IDS), 1)])
    assert result.computed == 1


def test_members_with_other_options_share_the_model_alone(loads):
    pool = ModelPool()
    leases = [
        pool.acquire(config(EMBEDDED[0], **settings))
        for settings in ({}, {"deterministic": True}, {"cache_gib": 0.5}, {"prefill_tokens": 64})
    ]
    leases.append(pool.acquire(config(MemberConfig(EMBEDDED[0], dtype="float32", context=100))))
    members = [lease.members[0] for lease in leases]
    assert len(loads) == 1
    assert len({member.member_id for member in members}) == len(members)
    assert len({id(model_of(member)) for member in members}) == 1
    assert [member.deterministic for member in members] == [False, True, False, False, False]
    assert (members[4].context, members[3].options.prefill_tokens) == (100, 64)
    assert [model.references for model in pool.models()] == [5]


def test_a_model_twice_in_one_ensemble_has_two_caches(loads):
    pool = ModelPool()
    twice = config(EMBEDDED[0], MemberConfig(EMBEDDED[0], name="copy", dtype="float32"))
    lease, again = pool.acquire(twice), pool.acquire(twice)
    one, other = lease.members
    assert len(loads) == 1
    assert one.member_id != other.member_id
    assert [member.member_id for member in again.members] == [one.member_id, other.member_id]
    executor = LocalExecutor([one, other])
    calls = {member.member_id: [Chunk("r", 0, tuple(IDS), 1)] for member in (one, other)}
    (first,), (second,) = executor.forward(calls).values()
    torch.testing.assert_close(first.logits, second.logits, rtol=0, atol=0)


@pytest.mark.parametrize(
    "changes",
    [{"dtype": "bfloat16"}, {"chat_template": "plain"}, {"tokenizer": EMBEDDED[0]}, {"device_map": {"": "cpu"}}],
)
def test_what_changes_the_model_is_another_model(changes):
    pool = ModelPool()
    plain = pool.acquire(config(EMBEDDED[0]))
    other = pool.acquire(config(MemberConfig(EMBEDDED[0], **{"dtype": "float32", **changes})))
    assert model_of(plain.members[0]) is not model_of(other.members[0])
    assert len(pool.models()) == 2


def test_a_relative_path_and_a_link_are_the_same_folder(tmp_path, monkeypatch, loads):
    shutil.copytree(EMBEDDED[0], tmp_path / "model")
    (tmp_path / "link").symlink_to(tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    pool = ModelPool()
    leases = [pool.acquire(config(path)) for path in ("model", "./model", str(tmp_path / "link"))]
    assert len(loads) == 1
    assert [lease.members[0].name for lease in leases] == ["model", "model", "link"]


def test_a_folder_that_is_written_again_is_another_model(tmp_path, loads):
    shutil.copytree(EMBEDDED[0], tmp_path / "model")
    pool = ModelPool()
    before = pool.acquire(config(str(tmp_path / "model")))
    model, _ = random_pair("llama")
    model.save_pretrained(tmp_path / "model")
    after = pool.acquire(config(str(tmp_path / "model")))
    assert len(loads) == 2
    assert type(model_of(after.members[0])) is type(model)
    assert not torch.equal(logits(before.members[0], IDS), logits(after.members[0], IDS))


def test_models_are_listed():
    pool = ModelPool()
    assert pool.models() == []
    with pool.acquire(config(*EMBEDDED[:2])), pool.acquire(config(EMBEDDED[0], cache_gib=0)):
        first, second = pool.models()
        assert (first.name, first.dtype, first.device) == (os.path.realpath(EMBEDDED[0]), "float32", "cpu")
        assert first.nbytes == sum(tensor.nbytes for tensor in random_like(EMBEDDED[0]))
        assert (first.references, second.references) == (2, 1)
    assert pool.models() == []


def random_like(folder):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="float32")
    return [*model.parameters(), *model.buffers()]


# ---- references


def test_a_model_is_freed_with_its_last_lease(loads):
    pool = ModelPool()
    leases = [pool.acquire(config(*EMBEDDED[:2])), pool.acquire(config(EMBEDDED[1])), pool.acquire(config(EMBEDDED[1]))]
    members = [lease.members[-1] for lease in leases]
    for member in members:
        logits(member, IDS)
    cache = weakref.ref(members[0]._runner._cache.stores()[0])
    leases[0].close()
    leases[0].close()
    gc.collect()
    assert [load() is None for load in loads] == [True, False]
    leases[1].close()
    logits(members[2], IDS)
    leases[2].close()
    gc.collect()
    # Also while somebody still holds the members.
    assert [load() is None for load in loads] == [True, True]
    assert cache() is None
    ((result,),) = LocalExecutor(members[:1]).forward({members[0].member_id: [Chunk("r", 0, (3,), 1)]}).values()
    assert "is closed" in str(result.logits)
    pool.acquire(config(EMBEDDED[1])).close()
    assert len(loads) == 3


def test_leases_may_be_closed_in_any_order_and_by_several_threads():
    pool = ModelPool()
    leases = [pool.acquire(config(*EMBEDDED[: 1 + index % 2])) for index in range(8)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(lambda lease: lease.close(), leases * 3))
    assert pool.models() == []


def test_a_closed_pool_refuses():
    pool = ModelPool()
    lease = pool.acquire(config(EMBEDDED[0]))
    with pytest.raises(GaCError, match=r"in use: .*ash; close their ensembles"):
        pool.close()
    lease.close()
    pool.close()
    pool.close()
    with pytest.raises(EngineClosedError, match="the model pool is closed"):
        pool.acquire(config(EMBEDDED[0]))


def test_there_is_one_pool_of_the_process():
    assert default_pool() is default_pool()
    assert isinstance(default_pool(), ModelPool)


# ---- loading


def test_threads_that_need_the_same_model_load_it_once(loads):
    pool, barrier = ModelPool(), threading.Barrier(8)

    def acquire(index):
        barrier.wait()
        return pool.acquire(config(*EMBEDDED[: 1 + index % 2]))

    with ThreadPoolExecutor(8) as threads:
        leases = list(threads.map(acquire, range(8)))
    assert len(loads) == 2
    assert len({lease.members[0].options.prefill_seconds for lease in leases}) == 2
    assert len({id(model_of(lease.members[0])) for lease in leases}) == 1


def test_different_models_load_in_parallel(monkeypatch):
    """Each load waits for the other one to begin."""
    barrier, load = threading.Barrier(2), LoadedModel.load.__func__

    def meet(cls, *given):
        barrier.wait(60)
        return load(cls, *given)

    monkeypatch.setattr(LoadedModel, "load", classmethod(meet))
    pool = ModelPool()
    with ThreadPoolExecutor(2) as threads:
        leases = list(threads.map(lambda folder: pool.acquire(config(folder)), EMBEDDED[:2]))
    assert [lease.members[0].name for lease in leases] == ["ash", "birch"]


def test_a_failed_load_leaves_nothing_and_is_repeated(monkeypatch, loads):
    pool, waiting, failures = ModelPool(), threading.Event(), []
    load = LoadedModel.load.__func__

    def fail_once(cls, checkpoint, name):
        if name == "birch" and not failures:
            failures.append(name)
            waiting.wait(60)
            raise ModelLoadError(name, "a cable was pulled")
        return load(cls, checkpoint, name)

    monkeypatch.setattr(LoadedModel, "load", classmethod(fail_once))
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool.acquire, config(*EMBEDDED[:2]))
        while not failures:
            waiting.wait(0.01)
        second = threads.submit(pool.acquire, config(MemberConfig(EMBEDDED[1], name="b", dtype="float32")))
        waiting.set()
        with pytest.raises(ModelLoadError, match=r"birch.*a cable was pulled"):
            first.result(60)
        with second.result(60):
            gc.collect()
            assert [model.name for model in pool.models()] == [os.path.realpath(EMBEDDED[1])]
            assert loads[0]() is None
    assert pool.models() == []
    with pool.acquire(config(*EMBEDDED[:2])):
        assert len(pool.models()) == 2


def test_all_checkpoints_are_checked_before_weights_are_read(tmp_path, loads):
    pool = ModelPool()
    with pytest.raises(ModelLoadError, match="the folder is empty"):
        pool.acquire(config(EMBEDDED[0], str(tmp_path)))
    assert not loads
    assert pool.models() == []


def test_a_context_that_is_too_long_frees_the_model_again(loads):
    pool = ModelPool()
    with pytest.raises(ConfigError, match="the context of member 'a' is set to 100000, but its model reads at most"):
        pool.acquire(config(MemberConfig(EMBEDDED[0], name="a", context=100_000)))
    gc.collect()
    assert loads[0]() is None
    assert pool.models() == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_process_begins_with_an_empty_pool():
    code = f"""
        import os, sys
        sys.path.insert(0, {str(ROOT / "tests")!r})
        from gac_core import EnsembleConfig, MemberConfig
        from gac_core.model.pool import default_pool
        from gac_core.sharing import fork_safe
        config = EnsembleConfig((MemberConfig({EMBEDDED[0]!r}),))
        lease = default_pool().acquire(config)
        # As if another thread held it at the moment of the fork.
        lease.members[0]._lock.acquire()
        child = os.fork()
        if child == 0:
            assert default_pool().models() == []
            lease.close()
            own = fork_safe(lambda: default_pool().acquire(config))
            assert own.members[0].member_id != lease.members[0].member_id
            assert len(default_pool().models()) == 1
            own.close()
            assert default_pool().models() == []
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        assert len(default_pool().models()) == 1
    """
    subprocess.run([sys.executable, "-c", textwrap.dedent(code)], check=True, timeout=240, cwd=ROOT)


# ---- members that share a model


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
        assert free.wait(60)
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


# ---- the executor


def test_members_are_added_and_removed_by_count():
    model, tokenizer = random_pair("llama")
    one, other = (Member("m", LoadedModel(model, tokenizer, "m")) for _ in range(2))
    executor = LocalExecutor([one])
    executor.add_member(one)
    executor.add_member(other)
    calls = {member.member_id: [Chunk("r", 0, tuple(IDS), 1)] for member in (one, other)}
    assert list(executor.forward(calls)) == [one.member_id, other.member_id]
    executor.release("r")
    executor.remove_member(one.member_id)
    executor.forward(calls)
    executor.release("r")
    executor.remove_member(one.member_id)
    with pytest.raises(KeyError):
        executor.forward(calls)
    assert [member._slots.num_running for member in (one, other)] == [0, 0]


def test_each_device_has_a_thread_while_there_are_two():
    _, tokenizer = random_pair("llama")
    one, other = (Member.from_model(random_model("llama", tokenizer, seed), tokenizer, "m") for seed in range(2))
    other.device = torch.device("cpu", 0)
    names: list[str] = []
    for member in (one, other):
        forward = member._runner.forward
        member._runner.forward = lambda rows, run=forward: names.append(threading.current_thread().name) or run(rows)
    executor = LocalExecutor([one])
    calls = {member.member_id: [Chunk("r", 0, tuple(IDS), 1)] for member in (one, other)}
    executor.forward({one.member_id: calls[one.member_id]})
    executor.add_member(other)
    executor.forward(calls)
    executor.remove_member(other.member_id)
    executor.release("r")
    executor.forward({one.member_id: calls[one.member_id]})
    main = threading.current_thread().name
    assert (names[0], names[-1]) == (main, main)
    assert sorted(name.rpartition("-")[0] for name in names[1:3]) == ["gac-cpu", "gac-cpu:0"]
    executor.close()
