"""Weights in 8 and 4 bits through bitsandbytes: the engine writes what the quantized model writes."""

from __future__ import annotations

import importlib.util

import pytest
import torch
from conftest import EMBEDDED, QUESTION

from gac_core import ConfigError, Ensemble, MemberConfig, ModelLoadError

needed = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


@needed
@pytest.mark.filterwarnings("ignore:MatMul8bitLt")
@pytest.mark.parametrize("quantization", ["8bit", "4bit"])
def test_a_quantized_member_writes_what_its_model_writes(quantization):
    member = MemberConfig(EMBEDDED[1], dtype="float32", quantization=quantization, device="cpu")
    with Ensemble.load([member], drafts=()) as one, Ensemble.load(EMBEDDED[1:2], dtype="float32") as full:
        loaded = one._members[0]
        model = loaded._runner._model
        assert any("bit" in type(module).__name__ for module in model.modules())
        assert loaded.cost < full._members[0].cost
        assert one.generate(QUESTION, max_tokens=8).usage.completion_tokens > 0
        prompt = "In which town is the Torno Bridge?"
        ids = torch.tensor([loaded.tokenizer.encode_prompt(prompt)])
        own = model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=12, do_sample=False)
        text = loaded.tokenizer.decode(own[0, ids.shape[1] :].tolist()).decode(errors="replace")
        assert one.generate(prompt, max_tokens=12).text == text


@needed
def test_quantization_of_members_that_set_none(ensemble):
    with Ensemble.load(EMBEDDED[1:], quantization="4bit", device="cpu") as both:
        assert [member.quantization for member in both.config.members] == ["4bit", "4bit"]
        assert both.generate(QUESTION, max_tokens=4).stats.steps > 0


def test_what_is_missing_is_named(monkeypatch):
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name, *a: None if name == "bitsandbytes" else find(name, *a)
    )
    with pytest.raises(ModelLoadError, match=r"ash.*8bit.*gac-ensemble\[quantized\]"):
        Ensemble.load([MemberConfig(EMBEDDED[0], quantization="8bit")])


def test_unknown_quantization_is_refused():
    with pytest.raises(ConfigError, match=r"ash.*8bit.*3bit"):
        MemberConfig(EMBEDDED[0], quantization="3bit")
