"""Configurations go to YAML and back, and name what they do not know."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED, QUESTION

from gac_core import ConfigError, Ensemble, EnsembleConfig, MemberConfig, UnknownArgumentError


def test_yaml_and_back(tmp_path):
    config = EnsembleConfig((MemberConfig("x/a", weight=2), MemberConfig("b", dtype="bfloat16")), "b", 0.5, 4)
    path = tmp_path / "ensemble.yaml"
    path.write_text(config.to_yaml())
    assert EnsembleConfig.from_yaml(path) == config


def test_an_ensemble_loads_from_yaml(tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members:\n- {EMBEDDED[0]}\n- model: {EMBEDDED[1]}\n  dtype: float32\nthreshold: 0.5\n")
    with Ensemble.from_config(path) as ensemble:
        assert ensemble.names == ["ash", "birch"]
        assert ensemble.generate(QUESTION, max_tokens=2).stats.steps >= 1


@pytest.mark.parametrize("text", ["members: [a]\nthresold: 0.5", "members: [{model: a, wieght: 2}]"])
def test_unknown_keys_are_named(tmp_path, text):
    path = tmp_path / "ensemble.yaml"
    path.write_text(text)
    with pytest.raises(UnknownArgumentError, match="did you mean"):
        EnsembleConfig.from_yaml(path)


@pytest.mark.parametrize("text", ["[]", "members: a", "members: [{weight: 2}]", "members: [3]", "a: [", "members:"])
def test_wrong_files_are_refused(tmp_path, text):
    path = tmp_path / "ensemble.yaml"
    path.write_text(text)
    with pytest.raises((ConfigError, UnknownArgumentError)):
        EnsembleConfig.from_yaml(path)
    with pytest.raises(ConfigError, match="cannot read"):
        EnsembleConfig.from_yaml(tmp_path / "nothing.yaml")


@pytest.mark.parametrize(("setting", "value"), [("commit", "free"), ("alignment", "boundary"), ("alignment", None)])
def test_unknown_rules_are_named(setting, value):
    with pytest.raises(ConfigError, match=f"{setting} must be one of .*, not {value!r}"):
        EnsembleConfig(("a",), **{setting: value})


@pytest.mark.parametrize("device", [["cuda:0", "cuda:1"], 0])
def test_a_device_that_is_no_string_is_named(device):
    with pytest.raises(ConfigError, match=r"device of member 'a' must be a string such as .*device_map"):
        Ensemble.load(["a"], device=device)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"model": "a", "gguf_file": "x.bin"}, r"must name a \.gguf file, not 'x\.bin'"),
        ({"model": "a", "gguf_file": 3}, r"must name a \.gguf file, not 3"),
        ({"model": "y.gguf", "gguf_file": "x.gguf"}, r"'x' names two GGUF files"),
        ({"model": "y.gguf", "quantization": "8bit"}, r"quantization of member 'y' cannot be combined"),
        ({"model": "a", "allow_pickle": "no"}, r"allow_pickle of member 'a' must be True or False"),
    ],
)
def test_where_weights_come_from_is_checked(fields, reason):
    with pytest.raises(ConfigError, match=reason):
        MemberConfig(**fields)


def test_a_gguf_member_is_called_by_its_file():
    assert MemberConfig("models/smol-Q4_K_M.gguf").called == "smol-Q4_K_M"
    assert MemberConfig("owner/repo", gguf_file="sub/small.gguf").called == "small"
    assert MemberConfig("owner/repo", name="n", gguf_file="small.gguf").called == "n"
