"""Configurations go to YAML and back, and name what they do not know."""

from __future__ import annotations

import dataclasses
import time

import pytest
import yaml
from conftest import EMBEDDED, QUESTION

from gac_core import (
    ConfigError,
    Ensemble,
    EnsembleConfig,
    MemberConfig,
    UnknownArgumentError,
    UnknownSettingError,
)


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
    with pytest.raises(ConfigError, match=f"{setting} must be .*, not {value!r}"):
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


WRONG = [
    *(
        True,
        float("nan"),
        float("inf"),
        -float("inf"),
        -1,
        1.5,
        10**30,
        -(10**30),
        "",
        "no",
        "false",
        "1",
        b"x",
        "\ud800",
    ),
    *([], ["a"], [1], {}, {1: 1}, (1, 2), {1}, object(), 1 + 2j, None),
]
# Which of them a field takes; flags take True.
TAKES = {
    "model": ["no", "false", "1"],
    "weight": [1.5, 10**30],
    "temperature": [1.5],
    "weights": [[1], {}, None],
    "calibration": [None],
    "absence": [None],
    "trust_remote_code": [True],
    "compile": [True],
    "allow_pickle": [True],
    "members": [["a"]],
    "drafts": [[], None],
    "cache_gib": [1.5],
    "document_cache_gib": [1.5],
    "deterministic": [True],
    "stuck_after": [1.5, 10**30],
    "forward_timeout": [1.5, 10**30],
    "gate_must_live": [True],
    "prefill_seconds": [1.5, 10**30],
    "num_gpus": [None],
    "num_cpus": [1.5, None],
    "resources": [{}, None],
    "ray_address": [None],
    "devices": [["a"], None],
    "progress": [True, None],
    "executor": [],
    **{key: ["no", "false", "1", None] for key in ("name", "device", "device_map", "revision", "tokenizer")},
    **{key: [None] for key in ("chat_template", "context", "quantization", "gguf_file", "gate", "threshold")},
    **{
        key: []
        for key in (
            "dtype",
            "max_batch_size",
            "commit",
            "alignment",
            "combine",
            "combine_documents",
            "gate_rule",
            "max_queue",
            "prefill_tokens",
            "on_member_failure",
            "min_members",
        )
    },
}


@pytest.mark.parametrize(
    ("kind", "field"),
    [(kind, field.name) for kind in (MemberConfig, EnsembleConfig) for field in dataclasses.fields(kind)],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_every_field_refuses_values_of_other_types(kind, field):
    base = {"model": "a"} if kind is MemberConfig else {"members": ("a",)}
    if field == "gate_must_live":
        base["on_member_failure"] = "drop"
    for value in WRONG:
        if any(type(value) is type(good) and value == good for good in TAKES[field]):
            kind(**{**base, field: value})
            continue
        with pytest.raises(ConfigError) as error:
            kind(**{**base, field: value})
        assert field in str(error.value), value
        assert len(str(error.value)) < 500


def test_unknown_keywords_are_settings_that_do_not_exist():
    for error in (ConfigError, UnknownArgumentError, UnknownSettingError, TypeError, ValueError):
        with pytest.raises(error, match=r"'wieght' \(did you mean 'weight'\?\)"):
            MemberConfig("a", wieght=2)
    with pytest.raises(ConfigError, match="did you mean 'threshold'"):
        EnsembleConfig(("a",), thresold=1)
    assert MemberConfig("a", weight=2) == dataclasses.replace(MemberConfig("a"), weight=2)


def test_a_missing_file_is_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError) as refused:
        EnsembleConfig.from_yaml("none.yaml")
    assert str(refused.value) == "cannot read the configuration 'none.yaml': No such file or directory"


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("members: [{model: a, trust_remote_code: 'no'}]", "trust_remote_code of member 'a' must be True or False"),
        ("members: [a]\nthresold: 0.5", "'thresold' .did you mean 'threshold'"),
        ("members: [{model: a, wieght: 2}]", "unknown key 'wieght' .did you mean 'weight'"),
        (
            "members: [a]\nweights: [2, 1]",
            r"weights has 2 values, \[2, 1\], but there is 1 member; give one per member",
        ),
        ("members: [a]\ndtype: auto", "unknown key 'dtype'.*; set 'dtype' in the entries of the members instead"),
        ("members: [a]\nmax_batch_size: .nan", "max_batch_size must be an integer, not nan"),
        ("members: [a]\nmax_batch_size: 1.0e+400", "max_batch_size must be an integer, not inf"),
    ],
)
def test_errors_name_the_file(tmp_path, text, reason):
    path = tmp_path / "ensemble.yaml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=rf"(?s){reason}.*in the configuration '.*ensemble\.yaml'"):
        EnsembleConfig.from_yaml(path)


BOMB = "&a0 [x, x, x, x, x, x, x, x, x]"
for _level in range(1, 28):
    BOMB = f"&a{_level} [{BOMB}{f', *a{_level - 1}' * 8}]"


@pytest.mark.parametrize(
    "text",
    [
        "members: %s",
        "members: [%s]",
        "members: [{model: %s}]",
        "members: [{model: a, device_map: {x: %s}}]",
        "members: [a]\ndrafts: %s",
        "members: [a]\nthreshold: %s",
        "members: [a]\n%s : 1",
        "members: [a]\nx: %s\n? *a27\n: 1\n? *a27\n: 2",
        "members: [a]\nx: %s\n? {a: *a27}\n: 1\n? {a: *a27}\n: 2",
    ],
)
def test_aliases_that_expand_without_end_are_refused_at_once(tmp_path, text):
    path = tmp_path / "ensemble.yaml"
    path.write_text(text % BOMB)
    begun = time.perf_counter()
    with pytest.raises(ConfigError, match=r"cannot read the configuration '.*ensemble\.yaml'") as error:
        EnsembleConfig.from_yaml(path)
    assert time.perf_counter() - begun < 1
    assert len(str(error.value)) < 800


def test_an_error_of_yaml_is_one_line_with_its_places(tmp_path):
    path = tmp_path / "ensemble.yaml"
    path.write_text("members: [ash\n")
    with pytest.raises(ConfigError) as error:
        EnsembleConfig.from_yaml(path)
    assert str(error.value).endswith(
        "while parsing a flow sequence (line 1, column 10): expected ',' or ']', but got '<stream end>' "
        "(line 2, column 1)"
    )


def test_unknown_arguments_of_loading_are_told_with_all_that_are_known():
    with pytest.raises(UnknownArgumentError, match=r"did you mean 'quantization'.*dtype"):
        Ensemble.load(["a"], quantisation="8bit")


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"ray_address": "auto"}, "ray_address"),
        ({"members": [{"model": "a", "num_gpus": 1}]}, "num_gpus of member 'a'"),
        ({"members": [{"model": "a"}, {"model": "b", "resources": {"x": 1}}]}, "resources of member 'b'"),
    ],
)
def test_settings_of_ray_are_refused_without_it(settings, named):
    values = {"members": ["a"], **settings}
    with pytest.raises(ConfigError, match=f"{named} has an effect with executor='ray' alone"):
        EnsembleConfig.from_dict(values)
    config = EnsembleConfig.from_dict({**values, "executor": "ray"})
    assert EnsembleConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


def test_several_gpus_are_not_shared():
    assert MemberConfig("a", num_gpus=0.5).num_gpus == 0.5
    assert MemberConfig("a", num_gpus=2).num_gpus == 2
    with pytest.raises(ConfigError, match=r"num_gpus of member 'a' must be at most 1 or a whole number, not 1\.5"):
        MemberConfig("a", num_gpus=1.5)


def test_amounts_of_gpus_are_not_custom_resources():
    with pytest.raises(ConfigError, match=r"resources of member 'a' contain 'GPU'; set num_cpus or num_gpus"):
        MemberConfig("a", resources={"GPU": 1})


@pytest.mark.parametrize(("field", "value"), [("min_members", 2), ("gate_must_live", True)])
def test_limits_of_what_is_dropped_need_the_policy(field, value):
    assert getattr(EnsembleConfig(("a", "b"), on_member_failure="drop", **{field: value}), field) == value
    with pytest.raises(ConfigError, match=f"{field}={value} has an effect with on_member_failure='drop' alone"):
        EnsembleConfig(("a", "b"), **{field: value})
