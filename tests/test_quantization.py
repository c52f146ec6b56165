"""Packed members: loaded through bitsandbytes, batched, and close to what they are packed from."""

from __future__ import annotations

import importlib.util
import logging

import pytest
import torch
from architectures import random_model
from conftest import EMBEDDED, tokenizer_of

from gac_core import ConfigError, Ensemble, MemberConfig, ModelLoadError
from gac_core.model.runner import SlotRunner

packs = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")
PROMPTS = ["Who", "The bridge stands in", "In which town is the Torno Bridge? It was built by"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A random model whose sizes are multiples of 64, the block of 4-bit weights."""
    path = tmp_path_factory.mktemp("packed")
    tokenizer = tokenizer_of(EMBEDDED[0])
    random_model("llama", tokenizer, seed=3, hidden_size=128, intermediate_size=256).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return str(path)


def weight_bytes(member):
    return sum(parameter.nbytes for parameter in member._runner._model.parameters())


def distributions(member):
    """The next-token probabilities behind each token of a prompt, by the member's model alone."""
    ids = torch.tensor([member.tokenizer.encode_prompt(PROMPTS[2])])
    with torch.inference_mode():
        return torch.softmax(member._runner._model(ids, use_cache=False).logits[0].float(), -1)


# Total variation from the model that is packed, on the mean: measured 0.13 and 0.65; another random model has 0.97.
@packs
@pytest.mark.parametrize(("kind", "share", "distance"), [("8bit", 0.55, 0.2), ("4bit", 0.45, 0.8)])
@pytest.mark.parametrize("dtype", ["bfloat16", "float32"])
def test_packed_members_are_small_close_and_batched(folder, kind, share, distance, dtype, caplog):
    with (
        caplog.at_level(logging.WARNING),
        Ensemble.load([folder], dtype=dtype) as whole,
        Ensemble.load([folder], dtype=dtype, quantization=kind) as packed,
    ):
        member = packed._members[0]
        assert isinstance(member._runner, SlotRunner)
        limit = share + 0.2 if dtype == "bfloat16" else share
        assert weight_bytes(member) < limit * weight_bytes(whole._members[0])
        outputs = packed.generate_batch(PROMPTS, max_tokens=8)
        assert all(output.usage.completion_tokens for output in outputs)
        difference = distributions(member) - distributions(whole._members[0])
        assert 0 < difference.abs().sum(-1).mean() / 2 < distance
    assert not [record for record in caplog.records if "cast" in record.message or "row by row" in record.message]


@packs
def test_a_members_own_quantization_comes_first(folder):
    members = [MemberConfig(folder, name="a", quantization="4bit"), MemberConfig(folder, name="b")]
    with Ensemble.load(members, dtype="bfloat16", quantization="8bit") as ensemble:
        assert [member.quantization for member in ensemble.config.members] == ["4bit", "8bit"]
        assert weight_bytes(ensemble._members[0]) < weight_bytes(ensemble._members[1])


def test_an_unknown_quantization_is_named():
    with pytest.raises(ConfigError, match=r"quantization of member 'ash' must be '8bit', '4bit' or None, not '3bit'"):
        MemberConfig(EMBEDDED[0], quantization="3bit")


def test_missing_bitsandbytes_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(ModelLoadError, match=r"'ash'.*'8bit'.*pip install 'gac-ensemble\[quantized\]'"):
        Ensemble.load([EMBEDDED[0]], quantization="8bit")
