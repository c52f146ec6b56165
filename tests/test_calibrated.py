"""Ensembles that take weights, temperatures and settings from a calibration, or weights from each prompt."""

from __future__ import annotations

import logging
import pickle
from dataclasses import fields, replace

import pytest
import yaml
from conftest import EMBEDDED, QUESTION

from gac_core import ConfigError, Ensemble, EnsembleConfig, MemberConfig, RequestError, SamplingParams, member_weights
from gac_core.calibration_file import Calibration
from gac_core.loading import configured, from_environment
from gac_langchain import ChatGaC
from gac_langchain import GaCLLM as LangChainLLM
from gac_langchain.settings import EnsembleSettings
from gac_llamaindex import GaCLLM
from gac_llamaindex.fields import EnsembleFields

FOUND = {
    "version": 1,
    "members": {
        "ash": {"weight": 0.75, "temperature": 1.5, "hurts": False},
        "birch": {"weight": 0.25},
        "cedar": {"weight": 0, "temperature": 2.0, "hurts": True},
    },
    "gate": "birch",
    "threshold": 0.8,
    "combine": "geometric",
    "gate_rule": "margin",
    "made_from": {"data": "q.jsonl", "questions": 8, "metric": "exact", "date": "2026-01-31"},
}


@pytest.fixture
def path(tmp_path):
    file = tmp_path / "calibration.yaml"
    file.write_text(yaml.safe_dump(FOUND))
    return file


def test_a_calibration_fills_in_what_is_not_set(path):
    config = EnsembleConfig(EMBEDDED, calibration=path)
    assert [member.temperature for member in config.members] == [1.5, 1.0, 2.0]
    assert (config.gate, config.threshold, config.combine, config.gate_rule) == ("birch", 0.8, "geometric", "margin")
    assert config.weights == "auto"
    assert member_weights(config, SamplingParams()) == [0.75, 0.25, 0]
    assert member_weights(config, SamplingParams(weights={"cedar": 2})) == [0.75, 0.25, 2]
    assert member_weights(config, SamplingParams(weights="perplexity")) == [1, 1, 1]
    own = EnsembleConfig(
        (MemberConfig(EMBEDDED[0], temperature=3.0), *EMBEDDED[1:]), gate="ash", threshold=0.1, calibration=str(path)
    )
    assert (own.members[0].temperature, own.gate, own.threshold, own.combine) == (3.0, "ash", 0.1, "geometric")


@pytest.mark.parametrize("weights", [[2, 1, 1], [1, 1, 1], {"ash": 4}])
def test_weights_of_the_user_stay(path, weights):
    config = EnsembleConfig(EMBEDDED, weights=weights, calibration=path)
    want = [2, 1, 1] if weights == [2, 1, 1] else [1, 1, 1] if isinstance(weights, list) else [4, 1, 1]
    assert member_weights(config, SamplingParams()) == want
    assert member_weights(replace(config, threshold=0.5), SamplingParams()) == want
    assert member_weights(config, SamplingParams(weights="auto")) == [0.75, 0.25, 0]


def test_a_configuration_with_a_calibration_is_a_value(path, tmp_path):
    config = EnsembleConfig(EMBEDDED, calibration=path)
    written = tmp_path / "ensemble.yaml"
    written.write_text(config.to_yaml())
    path.unlink()
    for again in (pickle.loads(pickle.dumps(config)), replace(config), EnsembleConfig.from_yaml(written)):
        assert again == config
    assert Calibration.of(yaml.safe_load(config.calibration.to_yaml())) == config.calibration


def test_an_ensemble_answers_as_calibrated(path, caplog):
    """A member of weight 0 takes no part unless a call gives it weight; one that hurts is reported."""
    config = EnsembleConfig(tuple(MemberConfig(folder, dtype="float32") for folder in EMBEDDED), calibration=path)
    with caplog.at_level(logging.WARNING), Ensemble.from_config(config) as ensemble:
        assert "the ensemble answers better without member 'cedar'; its weight is 0" in caplog.text
        settings = ensemble.generate(QUESTION, max_tokens=3).stats.settings
        assert settings.weights == {"ash": 0.75, "birch": 0.25}
        assert (settings.gate, settings.threshold, settings.combine, settings.gate_rule) == (
            "birch",
            0.8,
            "geometric",
            "margin",
        )
        with_all = ensemble.generate(QUESTION, max_tokens=1, weights={"cedar": 1.0}).stats.settings
        assert with_all.weights == {"ash": 0.375, "birch": 0.125, "cedar": 0.5}
        by_prompt = ensemble.generate(QUESTION, max_tokens=1, weights="perplexity").stats
        assert list(by_prompt.settings.weights) == list(by_prompt.likelihoods) == ensemble.names
        again = ensemble.generate(QUESTION, max_tokens=1, weights="auto").stats.settings
        assert again.weights == settings.weights


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (
            {"members": {"ash": {"weight": 1}, "birch": {"weight": 1}}},
            "lacks the member 'cedar' of the ensemble.*gac cal",
        ),
        (
            {"members": {**FOUND["members"], "oak": {"weight": 1}}},
            "the member 'oak', which the ensemble lacks.*members",
        ),
        ({"gate": "cedar"}, "the gate 'cedar' of the calibration is no member of it with a weight above 0"),
        ({"gate": 7}, "the calibration's gate must be a non-empty string, not 7"),
        ({"members": {"ash": {"weight": 0}}, "gate": None}, "no member with a weight above 0"),
        ({"members": {**FOUND["members"], "ash": {"wieght": 1}}}, "'wieght' .did you mean 'weight'"),
        ({"members": {**FOUND["members"], "ash": {"weight": -1}}}, "member 'ash': weight must be at least 0.*, not -1"),
        ({"members": {**FOUND["members"], "ash": 1}}, "member 'ash' must be a mapping with the key 'weight', not 1"),
        ({"members": {**FOUND["members"], "ash": {}}}, "member 'ash' has no weight"),
        ({"members": []}, "must be a mapping with the keys 'version' and 'members'"),
        ({"version": 2}, "the calibration's version must be at least 1 and at most 1, not 2"),
        ({"threshold": 2}, "the calibration's threshold must be at least 0 and at most 1, not 2"),
        ({"combine": "mode"}, "combine must be one of .*, not 'mode'"),
        ({"weights": []}, "unknown key of the calibration 'weights'"),
        ({"made_from": {"file": "x"}}, "unknown key of made_from in the calibration 'file'"),
        ({"made_from": 3}, "made_from must be a mapping, not 3"),
    ],
)
def test_damaged_calibrations_are_refused(path, change, reason):
    path.write_text(yaml.safe_dump({**FOUND, **change}))
    with pytest.raises(ConfigError, match=reason):
        EnsembleConfig(EMBEDDED, calibration=path)


def test_conflicts_are_errors(path, tmp_path):
    heavy = (MemberConfig(EMBEDDED[0], weight=2.0), *EMBEDDED[1:])
    for weights in ("auto", "perplexity", [1, 2, 3]):
        with pytest.raises(ConfigError, match=r"weights=.* and the weight 2 of member 'ash' exclude each other; leave"):
            EnsembleConfig(heavy, weights=weights, calibration=path)
    for weights in ("auto", "perplexity", [1, 2, 3]):
        assert configured(heavy, weights=weights, calibration=path).weights in (weights, (1, 2, 3))
    with pytest.raises(ConfigError, match=r"weights='auto' needs calibration.*gac calibrate"):
        EnsembleConfig(EMBEDDED, weights="auto")
    with pytest.raises(ConfigError, match="weights must be one of 'auto', 'perplexity', not 'often'"):
        EnsembleConfig(EMBEDDED, weights="often")
    with pytest.raises(ConfigError, match=r"cannot read .*missing.*in the calibration"):
        EnsembleConfig(EMBEDDED, calibration=tmp_path / "missing")


def test_another_calibration_replaces_all_of_the_first(path, tmp_path, monkeypatch):
    file = tmp_path / "ensemble.yaml"
    file.write_text(yaml.safe_dump({"members": EMBEDDED, "calibration": str(path)}))
    monkeypatch.setenv("GAC_CONFIG", str(file))
    assert from_environment(None).gate == "birch"
    other = {"version": 1, "members": {name: {"weight": 1, "temperature": 3.0} for name in ("ash", "birch", "cedar")}}
    assert from_environment(None, calibration=other) == EnsembleConfig(EMBEDDED, calibration=other)


@pytest.mark.parametrize("wrapper", [ChatGaC, LangChainLLM, GaCLLM])
def test_wrappers_take_a_calibration(wrapper, path):
    model = wrapper(models=EMBEDDED, dtype="float32", calibration=str(path), weights="auto", max_tokens=2)
    assert member_weights(model._ensemble.config, SamplingParams()) == [0.75, 0.25, 0]
    assert model._ensemble.config.threshold == 0.8
    if wrapper is not GaCLLM:
        assert model._identity()["calibrated_weights"] == [0.75, 0.25, 0]
    copied = pickle.loads(pickle.dumps(model))
    assert copied._ensemble.config == model._ensemble.config
    by_prompt = wrapper(ensemble=model._ensemble, weights="perplexity", max_tokens=2)
    assert by_prompt._sampling_params({}).weights == "perplexity"
    with pytest.raises(ConfigError, match="weights='auto' needs calibration"):
        wrapper(models=EMBEDDED[:2], dtype="float32", weights="auto")
    with Ensemble.load(EMBEDDED[:2], dtype="float32") as plain, pytest.raises(RequestError, match="needs a calibr"):
        wrapper(ensemble=plain, weights="auto")
    with pytest.raises(ConfigError, match="calibration goes with models"):
        wrapper(ensemble=model._ensemble, calibration=str(path))


def test_both_wrappers_declare_the_same():
    for name in ("weights", "calibration"):
        one, other = EnsembleSettings.model_fields[name], EnsembleFields.model_fields[name]
        assert (one.annotation, one.default, one.description) == (other.annotation, other.default, other.description)
    assert {"weights", "calibration"} <= {field.name for field in fields(EnsembleConfig)}


def test_prompts_that_decide_are_part_of_what_wrappers_report():
    with Ensemble.load(EMBEDDED[:2], dtype="float32", weights="perplexity") as ensemble:
        assert GaCLLM(ensemble=ensemble).to_payload()["weights"] == "perplexity"
        assert GaCLLM(ensemble=ensemble, weights=[1, 2]).to_payload()["weights"] == [1, 2]
        assert ChatGaC(ensemble=ensemble)._identity()["ensemble_weights"] == "perplexity"
        assert ChatGaC(ensemble=ensemble).invoke("a town", max_tokens=1).response_metadata["gac"]["weights"]
