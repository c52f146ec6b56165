"""The model pool: models are loaded once, shared between members, and freed with their last lease."""

from __future__ import annotations

import gc
import os
import shutil
import subprocess
import sys
import textwrap
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from chunks import IDS, ask_of, logits
from conftest import EMBEDDED, ROOT, random_pair
from pooled import config, model_of, recorded_loads
from transformers import AutoModelForCausalLM

from gac_core import ConfigError, EngineClosedError, GaCError, MemberConfig, ModelLoadError
from gac_core.executor.local import LocalExecutor
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.chunk import Chunk
from gac_core.model.pool import ModelPool, default_pool


@pytest.fixture
def loads(monkeypatch):
    return recorded_loads(monkeypatch)


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
    (first,), (second,) = executor.forward({member.member_id: [ask_of(member)] for member in (one, other)}).values()
    torch.testing.assert_close(first.result, second.result, rtol=0, atol=0)


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
    assert sorted(load() is None for load in loads) == [False, True]
    leases[1].close()
    logits(members[2], IDS)
    leases[2].close()
    gc.collect()
    # Also while somebody still holds the members.
    assert [load() is None for load in loads] == [True, True]
    assert cache() is None
    ((result,),) = LocalExecutor(members[:1]).forward({members[0].member_id: [ask_of(members[0], ids=[3])]}).values()
    assert "is closed" in str(result.result.error)
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


def test_the_default_pool_stays_open():
    with pytest.raises(GaCError, match=r"the default pool cannot be closed.*close the ensembles"):
        default_pool().close()
    default_pool().acquire(config(EMBEDDED[0])).close()


# ---- loading


def test_threads_that_need_the_same_model_load_it_once(loads):
    pool, barrier = ModelPool(), threading.Barrier(8)

    def acquire(index):
        barrier.wait()
        return pool.acquire(config(*EMBEDDED[: 1 + index % 2]))

    with ThreadPoolExecutor(8) as threads:
        leases = list(threads.map(acquire, range(8)))
    assert len(loads) == 2
    assert len({lease.members[0].member_id for lease in leases}) == 1
    assert len({id(model_of(lease.members[0])) for lease in leases}) == 1


def test_transformers_loads_one_model_at_a_time(monkeypatch):
    """It changes state of the whole process meanwhile, such as the default dtype."""
    barrier, load = threading.Barrier(2), Checkpoint.load_model
    from_pretrained, active, overlaps = AutoModelForCausalLM.from_pretrained, [], []

    def meet(checkpoint, report):
        barrier.wait(60)
        return load(checkpoint, report)

    def slow(*given, **named):
        overlaps.extend(active)
        active.append(given)
        time.sleep(0.1)
        try:
            return from_pretrained(*given, **named)
        finally:
            active.pop()

    monkeypatch.setattr(Checkpoint, "load_model", meet)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", slow)
    pool = ModelPool()
    configs = [config(MemberConfig(EMBEDDED[0], dtype=dtype)) for dtype in ("float32", "bfloat16")]
    with ThreadPoolExecutor(2) as threads:
        leases = list(threads.map(pool.acquire, configs))
    assert not overlaps
    assert [model_of(lease.members[0]).dtype for lease in leases] == [torch.float32, torch.bfloat16]


def test_a_failed_load_leaves_nothing_and_is_repeated(monkeypatch, loads):
    pool, failing, waiting, failures = ModelPool(), threading.Event(), threading.Event(), []
    load = Checkpoint.load_model

    def fail_once(checkpoint, report):
        name = checkpoint.config.called
        if name == "birch" and not failures:
            failures.append(name)
            failing.set()
            waiting.wait(60)
            raise ModelLoadError(name, "a cable was pulled")
        return load(checkpoint, report)

    monkeypatch.setattr(Checkpoint, "load_model", fail_once)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(pool.acquire, config(*EMBEDDED[:2]))
        assert failing.wait(60)
        second = threads.submit(pool.acquire, config(MemberConfig(EMBEDDED[1], name="b", dtype="float32")))
        waiting.set()
        with pytest.raises(ModelLoadError, match=r"birch.*a cable was pulled"):
            first.result(60)
        with second.result(60):
            gc.collect()
            assert [model.name for model in pool.models()] == [os.path.realpath(EMBEDDED[1])]
            assert sorted(load() is None for load in loads) == [False, True]
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
        from gac_core.loading import fork_safe
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
