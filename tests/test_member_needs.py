"""What members need, read from a model without weights, is what they take once they are loaded."""

from __future__ import annotations

import pytest
import torch
from conftest import EMBEDDED, REAL, random_pair
from pooled import config, model_of
from transformers import AutoModelForCausalLM

from gac_core import MemberConfig, ModelPool
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.chunk import Chunk
from gac_core.model.member import Member
from gac_core.model.needs import Workload, fixed_devices, member_need
from gac_core.placement.planner import plan
from gac_core.placement.values import Device

GIB = 2**30


def skeleton_of(folder, **fields):
    return Checkpoint.find(MemberConfig(str(folder), **fields)).skeleton()


def loaded_bytes(model) -> int:
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))


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
