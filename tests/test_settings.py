"""Defaults, the ambient threshold and a call's arguments; ensembles that are loaded once for all."""

from __future__ import annotations

import asyncio
import gc
import pickle
import threading

import pytest
from conftest import EMBEDDED, member_ids

from gac_core import (
    ConfigError,
    Ensemble,
    RequestError,
    UnknownArgumentError,
    open_ensemble,
    request_params,
    use_threshold,
)
from gac_core.loading import from_environment
from gac_langchain import ChatGaC
from gac_llamaindex import GaCLLM


def test_a_call_stands_above_its_surroundings_and_those_above_defaults():
    defaults = {"threshold": 0.2, "max_tokens": 7, "models": ["not a parameter"], "stop": None}
    assert request_params(defaults, {}).threshold == 0.2
    with use_threshold(0.6):
        assert request_params(defaults, {}).threshold == 0.6
        assert request_params(defaults, {"threshold": None}).threshold is None
        with use_threshold(None):
            assert request_params(defaults, {}).threshold is None
        assert request_params(defaults, {}).threshold == 0.6
    assert request_params(defaults, {}).threshold == 0.2
    assert request_params(defaults, {"stop": "end"}).stop == ("end",)
    assert request_params({}, {"stop": ["a", "b"]}).stop == ("a", "b")


def test_wrong_arguments_are_refused():
    with pytest.raises(UnknownArgumentError, match="did you mean 'threshold'"):
        request_params({}, {"treshold": 0.5})
    with pytest.raises(RequestError, match="threshold"), use_threshold(1.5):
        pass


async def test_tasks_see_the_threshold_of_their_starter():
    async def seen():
        await asyncio.sleep(0)
        return request_params({}, {}).threshold

    with use_threshold(0.3):
        inner = asyncio.create_task(seen())
    assert await inner == 0.3
    assert await seen() == "default"


def test_the_same_models_are_loaded_once():
    opened: list[Ensemble] = []
    threads = [threading.Thread(target=lambda: opened.append(Ensemble.shared(EMBEDDED[:1]))) for _ in range(10)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    other = Ensemble.shared(EMBEDDED[:1], threshold=0.5)
    assert {tuple(member_ids(each)) for each in [*opened, other]} == {tuple(member_ids(other))}
    opened[0].close()
    assert opened[0].closed
    assert not other.closed
    opened.clear()
    gc.collect()
    assert other.generate("x", max_tokens=1).usage.prompt_tokens > 0
    other.close()


def test_the_environment_names_a_configuration(monkeypatch, tmp_path):
    monkeypatch.delenv("GAC_CONFIG", raising=False)
    with pytest.raises(ConfigError, match="GAC_CONFIG"):
        Ensemble.shared()
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members: [{EMBEDDED[0]}, {EMBEDDED[1]}]\nthreshold: 0.5\n", encoding="utf-8")
    monkeypatch.setenv("GAC_CONFIG", str(path))
    monkeypatch.setenv("GAC_DEVICE", "cpu")
    loaded = Ensemble.shared(gate="birch")
    assert loaded.names == ["ash", "birch"]
    assert (loaded.config.threshold, loaded.gate) == (0.5, "birch")
    assert all(member.device == "cpu" for member in loaded.config.members)


def test_an_ensemble_comes_from_one_place(tmp_path):
    of_models = open_ensemble(EMBEDDED[:2], dtype="float32")
    assert member_ids(open_ensemble(EMBEDDED[:2], dtype="float32")) == member_ids(of_models)
    assert open_ensemble(ensemble=of_models) is of_models
    path = tmp_path / "ensemble.yaml"
    path.write_text(f"members: [{EMBEDDED[0]}]\n", encoding="utf-8")
    assert open_ensemble(config=path).config == open_ensemble(config={"members": [EMBEDDED[0]]}).config
    with pytest.raises(ConfigError, match="one of models, ensemble and config, not models and config"):
        open_ensemble(EMBEDDED, config=path)
    with pytest.raises(ConfigError, match="commit, dtype goes with models"):
        open_ensemble(config=path, dtype="float32", commit="canonical")
    with pytest.raises(ConfigError, match=r"gac_core\.Ensemble, not 'ash'"):
        open_ensemble(ensemble="ash")  # type: ignore[arg-type]


@pytest.mark.parametrize("wrapper", [ChatGaC, GaCLLM])
def test_settings_of_serving_are_fields_of_the_wrappers(wrapper):
    served = {"max_batch_size": 3, "max_queue": 5, "prefill_tokens": 64, "cache_gib": 0.25, "deterministic": True}
    served |= {"stuck_after": 90.0, "on_member_failure": "drop", "min_members": 1, "gate_must_live": True}
    served["forward_timeout"] = 30.0
    model = wrapper(models=EMBEDDED[:1], **served)
    copy = pickle.loads(pickle.dumps(model))
    for each in (model, copy):
        config = (each._ensemble if wrapper is ChatGaC else each.ensemble).config
        assert {name: getattr(config, name) for name in served} == served
    with Ensemble.load(EMBEDDED[:1]) as ensemble, pytest.raises(ValueError, match="cache_gib goes with models"):
        wrapper(ensemble=ensemble, cache_gib=1)
    with pytest.raises(ValueError, match="max_queue must be"):
        wrapper(models=EMBEDDED[:1], max_queue=-1)


def test_deterministic_reaches_a_configuration_that_says_nothing_of_drafts(tmp_path, monkeypatch):
    path = tmp_path / "ensemble.yaml"
    path.write_text("members: [a, b]\n", encoding="utf-8")
    monkeypatch.setenv("GAC_CONFIG", str(path))
    assert from_environment(None, deterministic=True).drafts == ()
    path.write_text("members: [a, b]\ndeterministic: true\n", encoding="utf-8")
    assert from_environment(None, deterministic=False).drafts == ("lookup", "ahead")
