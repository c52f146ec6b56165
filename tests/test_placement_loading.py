"""Placement in the pool: members on devices of their own, progress while they load."""

from __future__ import annotations

import io
import json
import logging
import sys
import threading

import pytest
import torch
from accelerate.utils.modeling import check_device_map
from chunks import IDS, logits
from conftest import EMBEDDED, QUESTION
from pooled import config, model_of
from transformers import AutoModelForCausalLM, AutoTokenizer

from gac_core import ConfigError, Ensemble, MemberConfig, ModelPool, PlacementError
from gac_core.model.checkpoint import Checkpoint
from gac_core.model.needs import Workload, member_need
from gac_core.model.placing import place_members
from gac_core.placement.values import Device

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
    """The first member's weights and the second one's tokenizer wait for each other."""
    met = threading.Barrier(2, timeout=60)
    load_tokenizer, load_weights = AutoTokenizer.from_pretrained, AutoModelForCausalLM.from_pretrained
    tokenizers, weights = [], []

    def tokenizer(*given, **named):
        tokenizers.append(named)
        if len(tokenizers) == 2:
            met.wait()
        return load_tokenizer(*given, **named)

    def model(*given, **named):
        weights.append(named)
        if len(weights) == 1:
            met.wait()
        return load_weights(*given, **named)

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", tokenizer)
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", model)
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


@pytest.fixture
def gpus(monkeypatch):
    """Two GPUs of so many bytes; nothing can be loaded on them."""

    def have(size: int) -> None:
        monkeypatch.setattr("gac_core.model.placing.default_devices", lambda: ("cuda:0", "cuda:1"))
        monkeypatch.setattr(
            "gac_core.model.placing.local_devices", lambda names: [Device(name, size, size) for name in names]
        )
        monkeypatch.setattr("gac_core.model.places.unusable", lambda device: None)

    return have


def test_all_gpus_are_used_by_default(gpus):
    gpus(2**40)
    placed = place_members(config(*EMBEDDED, MemberConfig(EMBEDDED[0], name="same", dtype="float32")), [])
    keys = [member.key.model.weights for member in placed]
    assert {key.device for key in keys} == {"cuda:0", "cuda:1"}
    assert keys[0] == keys[3]
    assert [member.checkpoint.device for member in placed] == [key.device for key in keys]
    later = place_members(config(EMBEDDED[0]), [placed[0].key.model])
    assert later[0].key.model == placed[0].key.model
    assert later[0].checkpoint is None


def test_a_member_that_is_too_large_for_a_gpu_is_divided_over_two(gpus, monkeypatch):
    settings = {"max_batch_size": 1, "prefill_tokens": 16, "cache_gib": 0, "document_cache_gib": 0}
    need = member_need(
        Checkpoint.find(MemberConfig(EMBEDDED[0], dtype="float32")), "ash", Workload(0, 16, max_batch_size=1)
    )
    gpus(int((need.activations + 0.7 * need.weights) / 0.95))
    (placed,) = place_members(config(EMBEDDED[0], **settings), [])
    device_map = placed.checkpoint.config.device_map
    assert set(device_map.values()) == {"cuda:0", "cuda:1"}
    assert placed.key.model.weights.devices == {"cuda:0", "cuda:1"}
    monkeypatch.undo()
    # accelerate accepts it for the model, and a model loads with it where all devices are this one.
    check_device_map(AutoModelForCausalLM.from_pretrained(EMBEDDED[0]), device_map)
    mapped = MemberConfig(EMBEDDED[0], dtype="float32", device_map=dict.fromkeys(device_map, "cpu"))
    pool = ModelPool()
    with pool.acquire(config(mapped)) as divided, pool.acquire(config(EMBEDDED[0], devices=["cpu:0"])) as one:
        assert model_of(divided.members[0]) is not model_of(one.members[0])
        torch.testing.assert_close(logits(divided.members[0], IDS), logits(one.members[0], IDS))
