"""Placement in the pool: sizes that come true, members on devices of their own, progress while they load."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading

import pytest
import torch
from chunks import IDS, logits
from conftest import EMBEDDED, QUESTION, REAL, random_pair
from pooled import config, model_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from gac_core import ConfigError, Ensemble, MemberConfig, ModelPool, PlacementError
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.chunk import Chunk
from gac_core.model.member import Member
from gac_core.model.needs import Workload, fixed_devices, member_need
from gac_core.model.placing import place_members
from gac_core.placement.planner import plan
from gac_core.placement.values import Device

GIB = 2**30


def skeleton_of(folder, **fields):
    return Checkpoint.find(MemberConfig(str(folder), **fields)).skeleton()


def loaded_bytes(model) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


# ---- what is predicted comes true


@pytest.mark.parametrize("dtype", ["auto", "float32", "float16"])
@pytest.mark.parametrize("folder", EMBEDDED)
def test_weights_are_as_large_as_predicted(folder, dtype):
    checkpoint = Checkpoint.find(MemberConfig(folder, dtype=dtype, device="cpu"))
    assert checkpoint.skeleton().weights == loaded_bytes(checkpoint.load_model())


@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_quantized_weights_are_as_large_as_predicted(quantization):
    checkpoint = Checkpoint.find(MemberConfig(EMBEDDED[0], quantization=quantization, device="cpu"))
    model, scales = checkpoint.load_model(), 0
    for parameter in model.parameters():
        state = getattr(parameter, "quant_state", None)
        if state is not None:
            scales += state.absmax.nbytes + state.state2.absmax.nbytes
        elif parameter.dtype == torch.int8:
            scales += 4 * parameter.shape[0]
    assert checkpoint.skeleton().weights == pytest.approx(loaded_bytes(model) + scales, rel=0.02)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "gemma3 with mixed layers"])
def test_other_architectures_are_as_large_as_predicted(tmp_path, name, tied):
    model, tokenizer = random_pair(name)
    model.config.tie_word_embeddings = tied
    model = type(model)(model.config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    checkpoint = Checkpoint.find(MemberConfig(str(tmp_path), device="cpu"))
    assert checkpoint.skeleton().weights == loaded_bytes(checkpoint.load_model())


@pytest.mark.real
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
@pytest.mark.parametrize("name", ["smollm2", "qwen", "gemma3"])
def test_real_members_are_as_large_as_predicted(name, dtype):
    checkpoint = Checkpoint.find(MemberConfig(str(REAL / name), dtype=dtype, device="cpu"))
    skeleton = checkpoint.skeleton()
    member = Member.from_model(checkpoint.load_model(), checkpoint.load_tokenizer(), name)
    assert skeleton.weights == pytest.approx(loaded_bytes(model_of(member)), rel=0.02)
    check_cache(member, skeleton, [1, 65, 200])


def check_cache(member, skeleton, lengths):
    """The KV cache of one request that grows token by token has the predicted bytes."""
    text = [7] * max(lengths)
    read = 0
    for length in lengths:
        while read < length:
            part = text[read : min(length, max(read + 1, length - 3))]
            (result,) = member.forward([Chunk("r", read, tuple(part), 1)])
            assert not isinstance(result.logits, BaseException)
            read += len(part)
        stores = member._runner._cache.stores()
        one_slot = sum(store.nbytes // store.shape[0] for store in stores)
        assert skeleton.cache_bytes(length) == pytest.approx(
            [sum(s.nbytes // s.shape[0] for s in stores[i : i + 2]) for i in range(0, len(stores), 2)]
        )
        assert one_slot == sum(skeleton.cache_bytes(length))


@pytest.mark.parametrize("folder", EMBEDDED)
def test_the_kv_cache_is_as_large_as_predicted(folder):
    with ModelPool().acquire(config(folder)) as lease:
        check_cache(lease.members[0], skeleton_of(folder, dtype="float32"), [1, 64, 65, 128, 200])


def test_the_need_of_a_member_has_all_of_its_parts():
    checkpoint = Checkpoint.find(MemberConfig(EMBEDDED[0]))
    need = member_need(checkpoint, "a", Workload(cache_bytes=GIB, union=1000))
    assert need.weights == sum(block.weights for block in need.blocks)
    assert need.kv_cache == GIB
    assert sum(block.kv_cache for block in need.blocks) == pytest.approx(GIB, abs=16)
    # The head needs its logits for a whole batch, in float32.
    assert need.activations > 16 * checkpoint.vocab_size * 4
    assert member_need(checkpoint, "a", Workload(0, tokens=900, requests=3)).kv_cache == 3 * sum(
        checkpoint.skeleton().cache_bytes(1024)
    )
    assert member_need(checkpoint, "a", None).total == need.weights


def test_a_model_that_cannot_be_built_counts_by_its_files(monkeypatch):
    checkpoint = Checkpoint.find(MemberConfig(EMBEDDED[0]))

    def fail(*_, **__):
        raise RuntimeError("no such operation")

    exact = checkpoint.skeleton().weights
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_config", fail)
    need = member_need(checkpoint, "a", Workload(cache_bytes=7))
    assert need.weights == pytest.approx(exact, rel=0.02)
    assert (need.kv_cache, need.blocks) == (7, ())


def test_blocks_name_modules_of_the_model():
    """A device map made of them places every parameter, and tied ones together."""
    checkpoint = Checkpoint.find(MemberConfig(EMBEDDED[0]))
    need = member_need(checkpoint, "a", Workload(cache_bytes=2**20))
    largest = max(block.total for block in need.blocks)
    sizes = [need.activations + (need.weights + need.kv_cache + largest) // 2 + 2**10] * 2
    (placement,) = plan([need], [Device(f"cuda:{i}", size, size) for i, size in enumerate(sizes)], 0).placements
    device_map = placement.device_map
    assert set(device_map.values()) == {"cuda:0", "cuda:1"}
    model = AutoModelForCausalLM.from_pretrained(EMBEDDED[0])
    for name, _ in (*model.named_parameters(), *model.named_buffers()):
        assert any(name == module or name.startswith(f"{module}.") for module in device_map), name
    if model.config.tie_word_embeddings:
        assert device_map["lm_head"] == device_map["model.embed_tokens"]
    layers = [device_map[f"model.layers.{index}"] for index in range(model.config.num_hidden_layers)]
    assert layers == sorted(layers)


@pytest.mark.parametrize(
    ("device", "device_map", "fixed"),
    [
        ("cuda:1", None, {"cuda:1": 1.0}),
        (None, "auto", {"cuda:0": 0.5, "cuda:1": 0.5}),
        (None, {"": "cuda:1"}, {"cuda:1": 1.0}),
        (None, {"model": 0, "lm_head": 0}, {"cuda:0": 1.0}),
    ],
)
def test_own_settings_fix_a_member(device, device_map, fixed):
    need = member_need(Checkpoint.find(MemberConfig(EMBEDDED[0])), "a", Workload(GIB))
    found = fixed_devices(need, device, device_map, ["cuda:0", "cuda:1"]).fixed
    assert dict(found) == pytest.approx(fixed)


# ---- members of a pool


def test_members_are_placed_on_the_devices_of_the_ensemble():
    def devices(*members, **settings):
        return [placed.key.model.weights.device for placed in place_members(config(*members, **settings), [])]

    assert devices(*EMBEDDED) == ["cpu"] * 3
    assert sorted(devices(*EMBEDDED[:2], devices=["cpu:0", "cpu:1"])) == ["cpu:0", "cpu:1"]
    own = MemberConfig(EMBEDDED[0], device="cpu:1")
    assert devices(own, EMBEDDED[1], devices=["cpu:0", "cpu:1"]) == ["cpu:1", "cpu:0"]
    mapped = MemberConfig(EMBEDDED[0], device_map={"": "cpu"})
    assert devices(mapped, EMBEDDED[1], devices=["cpu"]) == [None, "cpu"]


def test_weights_on_other_devices_than_those_of_the_ensemble_are_not_used():
    pool = ModelPool()
    with pool.acquire(config(EMBEDDED[0], devices=["cpu:0"])) as first:
        with pool.acquire(config(EMBEDDED[0], devices=["cpu:0", "cpu:1"])) as same:
            assert same.members[0].member_id == first.members[0].member_id
        with pool.acquire(config(EMBEDDED[0], devices=["cpu:1"])) as other:
            assert other.members[0].device == torch.device("cpu:1")
            assert model_of(other.members[0]) is not model_of(first.members[0])
        with pool.acquire(config(EMBEDDED[0])) as anywhere:
            assert anywhere.members[0].member_id == first.members[0].member_id


def test_what_does_not_fit_together_is_an_error(monkeypatch):
    """Each fits alone."""
    monkeypatch.setattr("gac_core.model.memory.free_bytes", lambda device: 5 * 2**20)
    pool = ModelPool()
    for folder in EMBEDDED[:2]:
        pool.acquire(config(folder)).close()
    with pytest.raises(PlacementError, match=r"does not fit: it needs 3\.\d MiB.*beside (ash|birch): 1\.\d MiB on cpu"):
        pool.acquire(config(*EMBEDDED[:2]))
    with pytest.raises(PlacementError, match=r"'birch' does not fit: .*; free, beside ash: "):
        pool.acquire(config(*(MemberConfig(folder, device="cpu", dtype="float32") for folder in EMBEDDED)))
    assert pool.models() == []


def test_devices_that_do_not_exist_are_named():
    with pytest.raises(ConfigError, match=r"devices names 'cuda:99', which cannot be used: .*this machine has cpu"):
        ModelPool().acquire(config(EMBEDDED[0], devices=["cuda:99"]))
    with pytest.raises(ConfigError, match="devices names 'gpu', which cannot be used"):
        ModelPool().acquire(config(EMBEDDED[0], devices=["gpu"]))


# ---- at the same time


DEVICES = ("cpu:0", "cpu:1")


def test_members_on_devices_of_their_own_answer_as_on_one():
    with Ensemble.load(EMBEDDED[:2], dtype="float32", threshold=None) as one:
        wanted = one.generate(QUESTION, max_tokens=24)
    with Ensemble.load(EMBEDDED[:2], dtype="float32", threshold=None, devices=DEVICES) as apart:
        assert {str(member.device) for member in apart._members} == set(DEVICES)
        found = apart.generate(QUESTION, max_tokens=24)
    assert (found.text, found.usage) == (wanted.text, wanted.usage)


def test_members_on_devices_of_their_own_compute_at_the_same_time():
    """Each forward of one member waits for one of the other: a barrier that only both together pass."""
    with Ensemble.load(EMBEDDED[:2], dtype="float32", devices=DEVICES, drafts=()) as ensemble:
        wanted = ensemble.generate(QUESTION, max_tokens=8).text
        met = threading.Barrier(2, timeout=60)

        def meet(*_):
            met.wait()

        hooks = [model_of(member).register_forward_pre_hook(meet) for member in ensemble._members]
        try:
            assert ensemble.generate(QUESTION, max_tokens=8).text == wanted
        finally:
            for hook in hooks:
                hook.remove()
    assert not met.broken


def test_members_on_one_device_compute_one_after_another():
    running, together = [], []

    def enter(*_):
        running.append(1)
        together.append(len(running))

    def leave(*_):
        running.pop()

    with Ensemble.load(EMBEDDED[:2], dtype="float32", drafts=()) as ensemble:
        models = [model_of(member) for member in ensemble._members]
        hooks = [model.register_forward_pre_hook(enter) for model in models]
        hooks += [model.register_forward_hook(leave) for model in models]
        ensemble.generate(QUESTION, max_tokens=4)
        for hook in hooks:
            hook.remove()
    assert set(together) == {1}


# ---- loading


def test_a_tokenizer_is_loaded_while_another_member_reads_its_weights(monkeypatch):
    """The weights of one member wait until the tokenizer of the other is about to be read."""
    met = threading.Barrier(2, timeout=60)
    load_tokenizer, load_weights = AutoTokenizer.from_pretrained, AutoModelForCausalLM.from_pretrained

    def tokenizer(*given, **named):
        if "birch" in str(named["pretrained_model_name_or_path"]):
            met.wait()
        return load_tokenizer(*given, **named)

    def weights(*given, **named):
        if "birch" not in str(named["pretrained_model_name_or_path"]):
            met.wait()
        return load_weights(*given, **named)

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", tokenizer)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", weights)
    ModelPool().acquire(config(*EMBEDDED[:2])).close()
    assert not met.broken


@pytest.mark.parametrize("shown", [True, False, None])
def test_progress_is_shown_on_a_terminal_or_as_asked(shown, monkeypatch, capsys, caplog):
    caplog.set_level(logging.INFO, "gac_core.model.progress")
    with ModelPool().acquire(config(*EMBEDDED[:2], progress=shown)) as lease:
        logits(lease.members[0], IDS)
    out, err = capsys.readouterr()
    assert out == ""
    assert "Loading weights" not in err
    stages = [record.getMessage() for record in caplog.records]
    for name in ("ash", "birch"):
        assert (f"{name} |" in err and "100%, ready" in err) == (shown is True)
        assert any(f"member {name!r}: weights" in line for line in stages) == (shown is not True)


def test_a_terminal_has_bars(monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stderr", Terminal())
    ModelPool().acquire(config(EMBEDDED[0])).close()
    assert "ash |" in sys.stderr.getvalue()


def test_models_that_are_loaded_have_no_bar(capsys):
    pool = ModelPool()
    with pool.acquire(config(EMBEDDED[0])):
        capsys.readouterr()
        pool.acquire(config(EMBEDDED[0], progress=True)).close()
        assert capsys.readouterr().err == ""


def test_a_plan_of_the_files_is_the_plan_of_the_pool(tmp_path):
    """A configuration may be written and read again."""
    written = config(*EMBEDDED[:2], devices=DEVICES, progress=False)
    (tmp_path / "e.yaml").write_text(written.to_yaml())
    read = type(written).from_yaml(tmp_path / "e.yaml")
    assert read == written
    assert json.dumps(read.devices) == json.dumps(DEVICES)
