"""What steps cost where members compute one after another or at the same time."""

from __future__ import annotations

from dataclasses import replace

import pytest
from conftest import QUESTION
from test_drafts import Flat

from gac_core import DocumentPrompt
from gac_core.decoding.drafting import StepCosts
from gac_core.decoding.run_ahead import RunAhead


def costed(ensemble, seconds, runs_on, threshold=None):
    """A request whose members' forwards take so many seconds and compute where ``runs_on`` says."""
    request, _ = ensemble._input_processor.request(QUESTION, None, {"threshold": threshold, "gate": ensemble.names[0]})
    for voice, own, where in zip(request.voices, seconds, runs_on, strict=True):
        voice.member = replace(voice.member, times=Flat(own), runs_on=where)
    return request


@pytest.mark.parametrize(
    ("runs_on", "threshold", "step"),
    [
        ("aaa", None, 7.0),  # one after another
        ("abc", None, 4.0),  # the slowest alone
        ("aba", None, 5.0),
        ("abc", 0.5, 1.0 + 4.0),  # the gate, then the others at the same time
        ("abb", 0.5, 1.0 + 6.0),
    ],
)
def test_members_apart_cost_the_slowest_of_them(ensemble, runs_on, threshold, step):
    request = costed(ensemble, (1.0, 2.0, 4.0), runs_on, threshold)
    assert StepCosts().step_seconds([request])(0) == step
    cost, token = RunAhead(None, StepCosts())._cost(request, 1)
    assert (cost(1), token) == (step, step)
    assert cost(3) == 3 * 1.0 + (max(2.0, 4.0) if runs_on[1] != runs_on[2] else 2.0 + 4.0)


class Linear:
    """A forward takes a second for each token."""

    def seconds(self, tokens):
        return float(tokens)


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_every_text_that_a_member_reads_is_a_row(ensemble, threshold):
    """Three documents and the prior: four rows for each of two members."""
    prompt = DocumentPrompt("{document} Why?", ["One.", "Two.", "Three."])
    settings = {"threshold": threshold, "gate": ensemble.names[0], "weights": [1, 1, 0]}
    request, _ = ensemble._input_processor.request(prompt, None, settings)
    members = {voice.name: replace(voice.member, times=Linear(), runs_on="a") for voice in request.voices}
    for voice in request.voices:
        voice.member = members[voice.name]
    cost = StepCosts().step_seconds([request] * 2)
    # With a threshold, the gate's own row is computed first.
    assert [cost(drafted) for drafted in (0, 2)] == [16.0, 48.0]
    ahead, token = RunAhead(None, StepCosts())._cost(request, 1)
    assert (ahead(1), token) == (8.0, 8.0)
    assert ahead(3) == 3 * 1.0 + 3 * 7.0
