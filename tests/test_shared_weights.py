"""What decides whether two members share weights: dtype, GGUF file, device; not the tokenizer or chat template."""

from __future__ import annotations

import gc
import json
import os
import shutil

import pytest
import torch
from chunks import IDS, logits
from conftest import EMBEDDED
from pooled import config, model_of, recorded_loads

from gac_core import MemberConfig, ModelLoadError, PlacementError
from gac_core.model.model_key import ModelKey, WeightsKey
from gac_core.model.pool import ModelPool


@pytest.fixture
def loads(monkeypatch):
    return recorded_loads(monkeypatch)


@pytest.mark.parametrize("changes", [{"dtype": "bfloat16"}, {"device_map": {"": "cpu"}}, {"allow_pickle": True}])
def test_what_changes_the_weights_is_another_model(changes):
    pool = ModelPool()
    plain = pool.acquire(config(EMBEDDED[0]))
    other = pool.acquire(config(MemberConfig(EMBEDDED[0], **{"dtype": "float32", **changes})))
    assert model_of(plain.members[0]) is not model_of(other.members[0])
    assert len(pool.models()) == 2


@pytest.mark.parametrize("dtypes", [("auto", "bfloat16"), ("bfloat16", "auto")])
def test_the_dtype_of_the_checkpoint_by_name_is_auto(loads, dtypes):
    pool = ModelPool()
    one, other = (pool.acquire(config(MemberConfig(EMBEDDED[0], dtype=dtype))).members[0] for dtype in dtypes)
    assert len(loads) == 1
    assert one.member_id == other.member_id
    assert model_of(one).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("stated", "dtype"),
    [
        ({"dtype": "float16"}, "float16"),
        ({"torch_dtype": "float16"}, "float16"),
        ({"dtype": "float64"}, "auto"),
        ({}, "auto"),
        ({"dtype": ["float16"]}, "auto"),
        ({"dtype": "float16", "text_config": {"dtype": "float16"}}, "float16"),
        ({"dtype": "float16", "text_config": {"dtype": "float32"}}, "auto"),
        ({"dtype": "float16", "text_config": {}}, "auto"),
        ({"dtype": "float16", "quantization_config": {}}, "auto"),
    ],
)
def test_auto_is_resolved_only_where_the_config_decides(tmp_path, stated, dtype):
    (tmp_path / "config.json").write_text(json.dumps(stated))
    assert WeightsKey.of(MemberConfig(str(tmp_path)), "cpu").settings.dtype == dtype
    packed = MemberConfig(str(tmp_path), quantization="8bit")
    assert WeightsKey.of(packed, "cpu").settings.dtype == "auto"


def test_both_ways_to_name_a_gguf_file_are_the_same_model(tmp_path, monkeypatch):
    (tmp_path / "x.gguf").write_bytes(b"GGUF")
    monkeypatch.chdir(tmp_path)
    named = [MemberConfig("x.gguf"), MemberConfig(str(tmp_path / "x.gguf")), MemberConfig(".", gguf_file="x.gguf")]
    assert len({ModelKey.of(member, "cpu") for member in named}) == 1
    (tmp_path / "y.gguf").write_bytes(b"GGUF")
    assert ModelKey.of(MemberConfig("y.gguf"), "cpu") != ModelKey.of(MemberConfig("x.gguf"), "cpu")


def test_models_with_other_tokenizers_and_templates_share_the_weights(tmp_path, loads):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(os.path.join(EMBEDDED[0], name), tmp_path / name)
    pool = ModelPool()
    changes = [{}, {"chat_template": "plain"}, {"chat_template": "{{ messages }}"}, {"tokenizer": str(tmp_path)}]
    leases = [pool.acquire(config(MemberConfig(EMBEDDED[0], dtype="float32", **each))) for each in changes]
    members = [lease.members[0] for lease in leases]
    assert len(loads) == 1
    assert len({id(model_of(member)) for member in members}) == 1
    assert len({id(member.tokenizer.hf) for member in members}) == 4
    assert len({member.tokenizer.hf.chat_template for member in members}) == 3
    assert len({member.member_id for member in members}) == 4
    assert [model.references for model in pool.models()] == [4]
    want = logits(members[0], IDS)
    for member in members[1:]:
        torch.testing.assert_close(logits(member, IDS), want, rtol=0, atol=0)
    for lease in leases[:3]:
        lease.close()
    assert torch.equal(logits(members[3], IDS), want)
    leases[3].close()
    gc.collect()
    assert loads[0]() is None
    assert pool.models() == []


def test_a_tokenizer_from_the_folder_of_the_weights_is_that_of_the_weights(loads):
    pool = ModelPool()
    own = MemberConfig(EMBEDDED[0], dtype="float32", tokenizer=os.path.relpath(EMBEDDED[0]))
    one, other = pool.acquire(config(EMBEDDED[0])), pool.acquire(config(own))
    assert len(loads) == 1
    assert one.members[0].member_id == other.members[0].member_id


def test_a_further_tokenizer_needs_no_memory_for_weights(monkeypatch):
    pool = ModelPool()
    lease = pool.acquire(config(EMBEDDED[0]))
    monkeypatch.setattr("gac_core.model.memory.free_bytes", lambda device: 1000)
    pool.acquire(config(MemberConfig(EMBEDDED[0], dtype="float32", chat_template="plain")))
    with pytest.raises(PlacementError, match=r"'birch' does not fit: .* free: 0\.0 MiB on cpu"):
        pool.acquire(config(EMBEDDED[1]))
    lease.close()


def test_a_tokenizer_of_another_model_leaves_shared_weights_in_use(loads):
    pool = ModelPool()
    lease = pool.acquire(config(EMBEDDED[0]))
    with pytest.raises(ModelLoadError, match="give the tokenizer that the model was trained with"):
        pool.acquire(config(MemberConfig(EMBEDDED[0], dtype="float32", tokenizer=EMBEDDED[2])))
    assert [model.references for model in pool.models()] == [1]
    logits(lease.members[0], IDS)
    lease.close()
    gc.collect()
    assert loads[0]() is None


def test_a_member_without_a_device_uses_weights_wherever_they_are(loads):
    pool = ModelPool()
    placed = pool.acquire(config(MemberConfig(EMBEDDED[0], dtype="float32", device_map={"": "cpu"})))
    free = pool.acquire(config(MemberConfig(EMBEDDED[0], dtype="float32", chat_template="plain")))
    assert len(loads) == 1
    assert model_of(free.members[0]) is model_of(placed.members[0])
    pool.acquire(config(MemberConfig(EMBEDDED[0], dtype="float32", device="cpu")))
    assert len(loads) == 2
