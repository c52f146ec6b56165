"""Loading: what is not a whole causal language model in safetensors is refused, by name and with a remedy."""

from __future__ import annotations

import json
import shutil
import struct
import sys
from pathlib import Path

import pytest
import torch
from conftest import EMBEDDED, ensemble_of, random_pair
from safetensors.torch import load_file, save_file
from transformers import (
    AutoTokenizer,
    BertConfig,
    BertForMaskedLM,
    BertModel,
    LlamaConfig,
    LlamaForSequenceClassification,
    T5Config,
    T5ForConditionalGeneration,
)

from gac_core import Ensemble, MemberConfig, ModelLoadError, PlacementError
from gac_core.inspection import load

SMALL = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


@pytest.fixture
def folder(tmp_path):
    """A copy of an embedded member."""
    return Path(shutil.copytree(EMBEDDED[0], tmp_path / "ash"))


def refused(path, reason, **fields):
    with pytest.raises(ModelLoadError, match=rf"(?s){Path(path).name}.*{reason}"):
        Ensemble.load([MemberConfig(str(path), **fields)])


def change(folder, how):
    """Rewrites the tensors of a folder."""
    tensors = load_file(folder / "model.safetensors")
    save_file(how(tensors), folder / "model.safetensors", metadata={"format": "pt"})


def test_missing_tensors_are_named(folder):
    change(folder, lambda tensors: {name: t for name, t in tensors.items() if ".layers.1." not in name})
    refused(
        folder, r"LlamaForCausalLM.* are missing: model\.layers\.1\.input_layernorm\.weight, .*save the model again"
    )


def test_tensors_of_another_model_are_named(folder):
    change(folder, lambda tensors: {**tensors, "model.layers.7.strange.weight": torch.zeros(2)})
    refused(folder, r"1 are not of this model: model\.layers\.7\.strange\.weight")


def test_tensors_of_another_shape_are_named(folder):
    change(folder, lambda tensors: {**tensors, "model.norm.weight": torch.zeros(3)})
    refused(folder, r"1 have another shape: model\.norm\.weight \(\[3\] in the file, \[\d+\] in the model\)")


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("name", ["llama", "gpt2", "neox", "gemma3 with mixed layers"])
def test_whole_checkpoints_load_tied_or_not(name, tied, tmp_path):
    model, tokenizer = random_pair(name)
    model.config.tie_word_embeddings = tied
    made = type(model)(model.config).eval()
    made.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    with Ensemble.load([tmp_path], dtype="float32") as ensemble, ensemble_of([(made, tokenizer)]) as own:
        assert ensemble.generate("Who", max_tokens=6).tokens == own.generate("Who", max_tokens=6).tokens != ()


def test_tensors_that_transformers_ignores_may_be_there(tmp_path):
    """Tied weights that are stored all the same, and buffers of older versions."""
    model, tokenizer = random_pair("llama")
    model.config.tie_word_embeddings = True
    model = type(model)(model.config)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    head = model.lm_head.weight.detach().clone()
    old = {"lm_head.weight": head, "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)}
    change(tmp_path, lambda tensors: {**tensors, **old})
    Ensemble.load([tmp_path]).close()


@pytest.mark.parametrize(
    "model",
    [
        BertModel(BertConfig(vocab_size=64, **SMALL)),
        BertForMaskedLM(BertConfig(vocab_size=64, **SMALL)),
        LlamaForSequenceClassification(LlamaConfig(vocab_size=64, **SMALL)),
        T5ForConditionalGeneration(T5Config(vocab_size=64, d_model=16, d_ff=16, d_kv=8, num_layers=1, num_heads=2)),
    ],
    ids=lambda model: type(model).__name__,
)
def test_models_of_another_kind_are_refused_by_name(model, tmp_path):
    model.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(EMBEDDED[0]).save_pretrained(tmp_path)
    refused(tmp_path, rf"architecture, {type(model).__name__}, is not a causal language model.*ForCausalLM")


def test_pickle_is_refused_unless_allowed(folder):
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    refused(folder, r"only as pickle \(pytorch_model\.bin\).*allow_pickle=True")
    with Ensemble.load([MemberConfig(str(folder), allow_pickle=True)]) as pickled, Ensemble.load([EMBEDDED[0]]) as safe:
        assert pickled.generate("Who", max_tokens=4).text == safe.generate("Who", max_tokens=4).text


def test_damaged_weights_are_told(folder):
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(folder, "damaged or incomplete .*download or copy it again")


def test_a_missing_part_is_told(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    names = load_file(folder / "model-00001-of-00002.safetensors")
    parts = {name: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, name in enumerate(names)}
    index = {"metadata": {"total_size": 1}, "weight_map": parts}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    refused(folder, r"model-00002-of-00002\.safetensors")


def test_folders_without_a_model_say_what_they_hold(folder, tmp_path):
    (tmp_path / "empty").mkdir()
    refused(
        tmp_path / "empty", r"the folder is empty; the folder must hold config\.json, safetensors weights and a tok"
    )
    (folder / "model.safetensors").unlink()
    refused(folder, r"has no weights; it must hold model\.safetensors")
    (folder / "config.json").unlink()
    (folder / "x.gguf").touch()
    refused(folder, r"no config\.json; it holds generation_config\.json, .*gguf_file='x\.gguf'")
    (folder / "adapter_config.json").touch()
    refused(folder, "an adapter alone; merge it into its base model")


def test_every_member_is_checked_before_one_is_loaded(folder, tmp_path, monkeypatch):
    (folder / "config.json").unlink()

    def read(*_, **__):
        raise AssertionError("weights were read")

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)
    with pytest.raises(ModelLoadError, match=r"ash.*no config\.json"):
        Ensemble.load([EMBEDDED[1], folder])


def test_weights_that_cannot_fit_are_refused_before_they_are_read(folder):
    """A configuration and a header alone, of embeddings of a TiB in bfloat16."""
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "vocab_size": 2**22, "hidden_size": 2**17}))
    header = json.dumps({"x": {"dtype": "BF16", "shape": [2**22, 2**17], "data_offsets": [0, 2**40]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    needs = r"'ash' does not fit: it needs {0}\.\d GiB \(weights {0}\.\d GiB\); free: [\d.]+ [GM]iB on cpu; use "
    with pytest.raises(PlacementError, match=needs.format(2051) + "dtype='bfloat16', quantization='4bit', more or"):
        Ensemble.load([folder], dtype="float32")
    # As its configuration says: bfloat16.
    with pytest.raises(PlacementError, match=needs.format(1025) + "quantization='4bit', more or larger"):
        Ensemble.load([folder])


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("CUDA out of memory"), RuntimeError("[enforce fail] not enough memory: you tried")]
)
def test_lack_of_memory_while_loading_is_told(error, folder, monkeypatch):
    def read(*_, **__):
        raise error

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)
    refused(folder, r"out of memory on 'cpu'; its weights need about \d\.\d MiB, .*free")


@pytest.mark.parametrize("text", ["the file is damaged.", "the file is damaged: ", "the file is damaged"])
def test_a_remedy_follows_the_reason_after_one_semicolon(text, folder, monkeypatch):
    def read(*_, **__):
        raise OSError(text)

    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", read)
    refused(folder, "the file is damaged; the folder must hold")


def test_a_tokenizer_of_a_larger_vocabulary_is_refused(tmp_path):
    model, _ = random_pair("llama")
    small = type(model)(LlamaConfig(**{**model.config.to_dict(), "vocab_size": 100}))
    small.save_pretrained(tmp_path)
    refused(tmp_path, r"tokenizer .*ash' has \d+ tokens, .* for 100; give the tokenizer", tokenizer=EMBEDDED[0])


def test_gguf_files_without_their_package_name_the_extra(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "gguf", None)
    (folder / "small.gguf").touch()
    refused(folder / "small.gguf", r"gguf, which is not installed; pip install 'gac-ensemble\[gguf\]'")


def test_gguf_files_that_are_not_there_are_named(folder):
    (folder / "small.gguf").touch()
    refused(folder / "x.gguf", r"there is no file .*x\.gguf.*gguf_file")
    refused(folder, r"has no file 'y\.gguf'; GGUF files in it: small\.gguf", gguf_file="y.gguf")
    refused("owner/repo/x.gguf", r"give the repository as model and the file as gguf_file")
    (folder / "small.gguf").write_bytes(b"GGUG" + bytes(100))
    refused(folder, "GGUF magic", gguf_file="small.gguf")


def test_a_name_too_long_for_a_path_is_refused():
    with pytest.raises(ModelLoadError, match="xxx"):
        Ensemble.load(["x" * 5000])


def test_a_folder_for_inspection_needs_only_a_tokenizer(tmp_path):
    AutoTokenizer.from_pretrained(EMBEDDED[0]).save_pretrained(tmp_path)
    assert load(str(tmp_path)).context is None


def configured(folder, file, **values):
    """Changes values of a JSON file of a folder."""
    path = folder / file
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
    return folder


@pytest.mark.parametrize("value", ["x", 1.5, -1, 10**6, [[1]], [1, "x"], True, {"a": 1}])
def test_ends_of_text_that_are_no_ids_are_refused(folder, value):
    refused(configured(folder, "generation_config.json", eos_token_id=value), r"eos_token_id of its generation_config")


@pytest.mark.parametrize("value", ["x", -1, 10**6, [1, "x"]])
def test_ends_of_text_in_the_configuration_are_checked_too(folder, value):
    refused(configured(folder, "config.json", eos_token_id=value), "eos_token_id")


def test_ends_of_text_that_are_words_are_told(folder, caplog):
    Ensemble.load([configured(folder, "generation_config.json", eos_token_id=[1, 100])]).close()
    assert "'ash' ends its answers at token 1, '\"', which its tokenizer does not mark as special" in caplog.text
    assert "its tokenizer ends a text with token 838, its generation_config.json with 1, 100" in caplog.text


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_hidden_layers", 10**6),
        ("hidden_size", 10**9),
        ("vocab_size", 10**12),
        ("intermediate_size", 10**10),
        ("head_dim", 10**9),
        ("num_attention_heads", -4),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", -5),
    ],
)
def test_configurations_that_the_weights_cannot_be_of_are_refused_at_once(folder, field, value):
    refused(configured(folder, "config.json", **{field: value}), field)


@pytest.mark.parametrize("value", [10**9, -1.5, [1], {"a": 1}, "x"])
def test_architectures_that_are_no_names_are_refused(folder, value):
    refused(configured(folder, "config.json", architectures=value), "architectures")


@pytest.mark.parametrize("value", ["x", [], {"a": 1}, [1], True])
def test_lengths_of_tokenizers_that_are_no_numbers_are_refused(folder, value):
    refused(configured(folder, "tokenizer_config.json", model_max_length=value), "model_max_length")


@pytest.mark.parametrize("value", [3, {"a": 1}, {"default": None}])
def test_chat_templates_that_are_no_texts_are_refused(folder, value):
    refused(configured(folder, "tokenizer_config.json", chat_template=value), "chat_template must be a Jinja template")


def test_tokenizers_that_fail_when_they_are_used_are_refused(folder, monkeypatch):
    monkeypatch.setattr("gac_core.tokenization.token_bytes.is_byte_level", lambda tokenizer: 1 + "x")
    refused(folder, r"its tokenizer cannot be used: TypeError: .*download or save it again")


def test_weights_cut_anywhere_are_refused(folder):
    file = folder / "model.safetensors"
    data = file.read_bytes()
    for length in (0, 4, 8, 100, 3000, len(data) // 2, len(data) - 1):
        file.write_bytes(data[:length])
        refused(folder, "damaged or incomplete")
