"""Loading of real models: what is incomplete or of another kind is refused; GGUF files equal what they convert to."""

from __future__ import annotations

import importlib.util
import shutil

import pytest
import torch
from conftest import REAL
from safetensors.torch import load_file, save_file

from gac_core import Ensemble, MemberConfig, ModelLoadError
from gac_core.model.checkpoint import Checkpoint
from gac_core.placement.sizes import format_bytes

pytestmark = pytest.mark.real


def test_a_model_without_ten_layers_is_refused(tmp_path):
    folder = shutil.copytree(REAL / "smollm2", tmp_path / "smollm2")
    tensors = load_file(folder / "model.safetensors")
    left = {name: t for name, t in tensors.items() if not any(f".layers.{layer}." in name for layer in range(20, 30))}
    save_file(left, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"smollm2.*90 are missing: model\.layers\.20\.input_layernorm\.weight, "):
        Ensemble.load([folder])


@pytest.mark.skipif(not (REAL / "minilm").is_dir(), reason="the folder minilm of the real models is not there")
def test_an_embedding_model_is_refused():
    with pytest.raises(ModelLoadError, match=r"minilm.*BertModel, is not a causal language model"):
        Ensemble.load([REAL / "minilm"])


@pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None or not (REAL / "gguf").is_dir(),
    reason="the package gguf or the folder gguf of the real models is not there",
)
@pytest.mark.parametrize(
    "name", ["smollm2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("qwen", "gemma3"))]
)
def test_a_gguf_file_equals_its_converted_folder(name, real, caplog):
    """The same weights bit for bit, hence the same logits; and the same tokenizer."""
    file = MemberConfig(str(REAL / "gguf" / f"{name}.gguf"), dtype="bfloat16", device="cpu")
    checkpoint = Checkpoint.find(file)
    model, tokenizer = checkpoint.load_model(), checkpoint.load_tokenizer()
    wanted, own = real.pair(name, "bfloat16")
    (line,) = [record.message for record in caplog.records if record.name == "gac_core.model.checkpoint"]
    memory = format_bytes(sum(parameter.nbytes for parameter in model.parameters()))
    assert line == f"member '{name}': its GGUF weights were dequantised to bfloat16; it takes {memory} of memory"
    weights = wanted.state_dict()
    assert model.state_dict().keys() == weights.keys()
    assert all(torch.equal(tensor, weights[key]) for key, tensor in model.state_dict().items())
    assert tokenizer.get_vocab() == own.get_vocab()
    text = "The capital of France is Paris.\n\ndef f(x):\n    return x + 1\n"
    assert tokenizer.encode(text) == own.encode(text)
    assert (tokenizer.chat_template, tokenizer.eos_token_id) == (own.chat_template, own.eos_token_id)
    ids = torch.tensor([tokenizer.encode(text)])
    with torch.no_grad():
        assert torch.equal(model(ids).logits, wanted(ids).logits)


@pytest.mark.skipif(
    importlib.util.find_spec("gguf") is None or not (REAL / "gguf").is_dir(),
    reason="the package gguf or the folder gguf of the real models is not there",
)
def test_a_gguf_file_and_a_folder_answer_on_two_devices_without_bars(capfd):
    members = [
        MemberConfig(str(REAL / "gguf" / "smollm2.gguf"), name="file", device="cpu:0"),
        MemberConfig(str(REAL / "smollm2"), name="folder", device="cpu:1"),
    ]
    with Ensemble.load(members, dtype="bfloat16", threshold=0.9) as ensemble:
        assert "; file on cpu:0, folder on cpu:1; " in ensemble.summary()
        question = [{"role": "user", "content": "What is the capital of France?"}]
        assert "Paris" in ensemble.generate(question, max_tokens=16).text
    assert "it/s" not in capfd.readouterr().err
