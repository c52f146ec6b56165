"""The gate by default, and what is logged of it."""

from __future__ import annotations

import logging

import pytest
from conftest import EMBEDDED, QUESTION, shared_ensemble

from gac_core import (
    Ensemble,
    EnsembleConfig,
    RequestError,
    SamplingParams,
)
from gac_core.effective import EnsembleDefaults, default_gate
from gac_langchain import ChatGaC

ASK = QUESTION[1]["content"]
BIRCH = {"configurable": {"gac_gate": "birch", "gac_threshold": 0.5}}


@pytest.mark.parametrize(
    ("weights", "sizes", "gate", "reason"),
    [
        ([1.0], [5], 0, "only member"),
        ([1.0, 2.0, 1.0], [9, 5, 7], 1, "largest weight"),
        ([1.0, 1.0, 0.5], [5, 7, 9], 1, "largest model"),
        ([2.0, 1.0, 2.0], [5, 9, 5], 0, "first"),
    ],
)
def test_the_default_gate_has_the_largest_weight_then_the_largest_model(weights, sizes, gate, reason):
    index, why = default_gate(weights, sizes)
    assert index == gate
    assert reason in why


def test_weights_of_a_request_determine_its_default_gate():
    def gate(weights, threshold=None, named=None, configured=None):
        config = EnsembleConfig(("a", "b"), gate=configured, threshold=threshold)
        settings = EnsembleDefaults(config, [5, 4]).resolve(SamplingParams(weights=weights, gate=named))
        return config.names[settings.gate]

    assert (gate(None), gate([1, 1.1]), gate({"a": 0.5}, threshold=0.5)) == ("a", "b", "b")
    assert gate([1, 2], threshold=0.5, configured="a") == gate([1, 2], threshold=0.5, named="a") == "a"
    # A configured gate of weight 0 is replaced where it would decide nothing; one that the call names is an error.
    assert gate([0, 1], configured="a") == "b"
    for arguments in ({"configured": "a", "threshold": 0.5}, {"named": "a"}):
        with pytest.raises(
            RequestError, match="the gate 'a' has the weight 0 in this request; give it a weight above 0"
        ):
            gate([0, 1], **arguments)


def test_the_gate_and_its_reason_are_logged_at_load(caplog):
    caplog.set_level(logging.INFO, logger="gac_core")

    def loaded(models, **settings):
        caplog.clear()
        with Ensemble.load(models, dtype="float32", **settings) as ensemble:
            gate = ensemble.generate(QUESTION, max_tokens=1, threshold=0.0).stats.settings.gate
            assert gate == ensemble.gate
        records = [record for record in caplog.records if record.name.startswith("gac_core")]
        assert [record.levelname for record in records] == ["INFO"]
        return gate, records[0].getMessage()

    # Ash is larger than birch.
    gate, line = loaded([EMBEDDED[1], EMBEDDED[0]])
    assert (gate, line.count("birch 1, ash 1;")) == ("ash", 1)
    assert "gate ash (largest model" in line
    assert "no threshold" in line
    gate, line = loaded(EMBEDDED[:2], weights=[1.0, 2.0], threshold=0.5)
    assert gate == "birch"
    assert "gate birch (largest weight), threshold 0.5" in line
    gate, line = loaded(EMBEDDED[:2], gate="birch", threshold=0.5)
    assert gate == "birch"
    assert "gate birch (as configured)" in line


def test_precision_does_not_decide_which_model_is_larger():
    small = {"model": EMBEDDED[1], "dtype": "float32"}
    large = {"model": EMBEDDED[0], "dtype": "bfloat16"}
    with Ensemble.load([small, large]) as ensemble:
        assert ensemble.gate == "ash"


def test_a_gate_without_a_threshold_is_warned_of_once(caplog):
    def warnings():
        lines = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
        caplog.clear()
        return [line for line in lines if "gate" in line]

    with shared_ensemble(EMBEDDED[:2], gate="birch") as ensemble:
        assert len(warnings()) == 1
        ensemble.generate(QUESTION, gate="birch", max_tokens=1)
        assert not warnings()
    with shared_ensemble(EMBEDDED[:2]) as ensemble:
        ensemble.generate(QUESTION, max_tokens=1)
        ensemble.generate(QUESTION, gate="birch", threshold=0.0, max_tokens=1)
        chat = ChatGaC(ensemble=ensemble, max_tokens=1)
        chat.with_gate("birch").with_threshold(0.5).invoke(ASK)
        chat.invoke(ASK, model="birch")
        chat.invoke(ASK, config=BIRCH)
        assert not warnings()
        ensemble.generate(QUESTION, gate="birch", max_tokens=1)
        (line,) = warnings()
        assert "gate='birch' chooses no token" in line
        ensemble.generate(QUESTION, gate="birch", max_tokens=1)
        assert not warnings()
        ChatGaC(ensemble=ensemble, gate="ash")
        assert len(warnings()) == 1
