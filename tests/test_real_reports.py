"""What an answer of real models reports: the gate chosen by size, and how far the members agree."""

from __future__ import annotations

import math

import pytest

from gac_langchain import GaCLLM

pytestmark = pytest.mark.real


def test_metadata_of_real_models_name_the_gate_and_the_agreement(real):
    with real.ensemble("smollm2", "qwen", dtype="bfloat16") as pair:
        llm = GaCLLM(ensemble=pair, max_tokens=12, token_stats=True)
        gac = llm.generate(["Once upon a time, in a village by the sea,"]).generations[0][0].generation_info["gac"]
    assert (gac["gate"], gac["threshold"]) == ("qwen", None)
    assert gac["weights"] == {"smollm2": 0.5, "qwen": 0.5}
    assert 0 < gac["agreement"] < 1
    assert 0 < gac["divergence"] < math.log(2)
    assert 0 < gac["confidence"] < 1
    assert len(gac["token_stats"]) == gac["steps"] == gac["steps_ensembled"] == 12
    assert all(0 < entry["divergence"] < math.log(2) for entry in gac["token_stats"])
