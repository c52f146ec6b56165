"""Calibration: pure functions against brute force and known answers, and `gac calibrate` on the embedded members."""

from __future__ import annotations

import json
import math
import re

import numpy as np
import pytest
import torch
from conftest import EMBEDDED
from questions import write_questions
from typer.testing import CliRunner

from gac_core import Ensemble, EnsembleConfig, SamplingParams, member_weights
from gac_core.calibration.fit import Fit
from gac_core.calibration.mixture import em_weights, fit_mixture, mean_nll
from gac_core.calibration.reliability import calibration_error, reliability
from gac_core.calibration.temperature import GRID, best_temperature
from gac_core.calibration.traces import StepTrace, Trace, Traces, share_ensembled, threshold_for_share
from gac_core.cli import app
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.metrics import metric_named
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import read_questions
from gac_core.evaluation.results import read_lines
from gac_core.evaluation.task import make_task
from gac_core.executor.evaluator import target_logprobs
from gac_core.executor.messages import Targets

RNG = np.random.default_rng(0)


# ---- weights


def test_weights_are_those_of_a_brute_force_grid():
    """On a grid of all weights in steps of 1/100 none is better, and the best of them is next to it."""
    probs = RNG.random((60, 3)) ** 2
    found = em_weights(probs)
    grid = [(a / 100, b / 100, (100 - a - b) / 100) for a in range(101) for b in range(101 - a)]
    best = min(grid, key=lambda weights: mean_nll(probs, weights))
    assert mean_nll(probs, found) <= mean_nll(probs, best) + 1e-9
    assert found == pytest.approx(best, abs=0.011)
    assert found.sum() == pytest.approx(1)


def test_weights_of_a_mixture_are_recovered():
    """Tokens are drawn from a known mixture of two distributions."""
    one, other = np.array([0.7, 0.2, 0.1]), np.array([0.1, 0.2, 0.7])
    drawn = RNG.choice(3, size=20_000, p=0.8 * one + 0.2 * other)
    assert em_weights(np.stack([one[drawn], other[drawn]], axis=1)) == pytest.approx([0.8, 0.2], abs=0.02)


def test_a_member_that_hurts_is_left_out():
    """The third one gives every right token little probability; the first two are right at different places."""

    def tokens(count):
        good = RNG.random(count) < 0.5
        return np.stack([np.where(good, 0.9, 0.1), np.where(good, 0.1, 0.9), np.full(count, 0.01)], axis=1)

    found = fit_mixture(("a", "b", "c"), tokens(500), tokens(500))
    assert found.hurts == ("c",)
    assert found.weights["c"] == 0
    assert found.weights["a"] == pytest.approx(0.5, abs=0.1)
    assert found.chosen < found.equal
    assert found.alone["c"] == pytest.approx(-math.log(0.01))
    alone = fit_mixture(("a", "b"), np.array([[0.9, 0.1]] * 50), np.array([[0.9, 0.1]] * 50))
    assert (alone.hurts, alone.weights) == (("b",), {"a": 1.0, "b": 0.0})


# ---- temperatures


@pytest.mark.parametrize("known", [0.6, 1.0, 1.7, 2.9])
def test_a_known_temperature_is_recovered(known):
    """Tokens are drawn from logits, which a member then has multiplied by the temperature."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn((6000, 20), generator=generator) * 2
    ids = torch.multinomial(logits.softmax(-1), 1, generator=generator)[:, 0]
    nll = -target_logprobs(Targets(tuple(ids.tolist()), GRID), logits * known).sum(-1)
    assert best_temperature(nll.tolist()) == pytest.approx(known, rel=0.06)


def test_the_minimum_between_points_of_a_grid_is_found():
    grid = (0.5, 1.0, 2.0)
    nll = [(math.log(t) - 0.2) ** 2 for t in grid]
    assert best_temperature(nll, grid) == pytest.approx(math.exp(0.2), abs=1e-3)
    assert best_temperature([1.0, 2.0, 3.0], grid) == 0.5
    assert 1.0 in GRID


# ---- reliability


def test_calibration_error_of_a_case_worked_out_by_hand():
    """Two answers near 0.9 of which one is right, and two near 0.3 of which none is: (0.4 + 0.3) / 2."""
    confidences, correct = [0.9, 0.9, 0.3, 0.3], [True, False, False, False]
    assert calibration_error(confidences, correct) == pytest.approx(0.35, abs=1e-6)
    found = reliability("a", "x", confidences, correct)
    assert (found.accuracy, found.confidence, found.count) == (0.25, pytest.approx(0.6), 4)
    filled = [each for each in found.bins if each.count]
    assert [(each.count, each.accuracy) for each in filled] == [(2, 0.0), (2, 0.5)]
    by_bins = sum(each.count * abs(each.accuracy - each.confidence) for each in found.bins) / found.count
    assert found.ece == pytest.approx(by_bins, abs=1e-6)


# ---- thresholds


def trace(*steps):
    return Trace(tuple(StepTrace({"g": certainty}, ("g",) if agreed else ()) for certainty, agreed in steps))


def test_what_a_threshold_changes_follows_from_a_trace():
    own = trace((0.9, True), (0.4, False), (0.8, False))
    assert [own.ensembled("g", threshold) for threshold in (0.0, 0.5, 0.9, 1.0)] == [0, 1, 2, 3]
    # At 0.85 the gate is sure only where it agrees; at 0.8 it would select another token at the third step.
    assert [own.can_change("g", threshold) for threshold in (0.95, 0.85, 0.8, 0.4)] == [False, False, True, True]
    both = [own, trace((0.2, True))]
    assert share_ensembled(both, "g", 0.5) == pytest.approx(2 / 4)


@pytest.mark.parametrize("share", [0.0, 0.25, 0.5, 0.99, 1.0])
def test_the_threshold_for_a_share_is_the_largest_one(share):
    traces = [trace(*((float(value), True) for value in RNG.random(200)))]
    found = threshold_for_share(traces, "g", share)
    assert share_ensembled(traces, "g", found) <= share
    assert found == 1.0 or share_ensembled(traces, "g", found + 0.01) > share


def test_traces_are_kept_in_a_file(tmp_path):
    path = tmp_path / "traces.jsonl"
    Traces(path).add({("t", "1"): trace((0.5, True))})
    with path.open("a") as file:
        file.write('\n{"task": "t", "id": "2", "st')
    again = Traces(path)
    assert again.by_key == {("t", "1"): trace((0.5, True))}
    again.add({("t", "2"): trace((0.25, False))})
    assert Traces(path).by_key == again.by_key
    path.write_text('{"task": "t"}')
    with pytest.raises(EvaluationError, match="cannot read the traces"):
        Traces(path)


# ---- gac calibrate


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions about passages that the embedded members can answer."""
    return write_questions(tmp_path_factory.mktemp("data") / "handbook.jsonl", 16, domain="bridges")


def calibrate(*arguments):
    done = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done


@pytest.fixture(scope="module")
def finished(data, tmp_path_factory):
    """A finished calibration: its folder, and what it printed."""
    folder = tmp_path_factory.mktemp("calibration")
    out = ["--out", folder / "c.yaml", "--results", folder / "r.jsonl", "--diagrams", folder / "d"]
    done = calibrate(*EMBEDDED, "--data", data, "--dtype", "float32", "--share", "0.5", *out)
    assert done.exit_code == 0, done.output
    return folder, done.output


def test_a_calibration_is_written_and_read(finished):
    folder, printed = finished
    config = EnsembleConfig(EMBEDDED, calibration=folder / "c.yaml")
    found = config.calibration
    assert (found.made_from.data, found.made_from.questions, found.made_from.metric) == ("handbook.jsonl", 16, "f1")
    assert sum(member_weights(config, SamplingParams())) == pytest.approx(1, abs=1e-3)
    stored = Fit.of(json.loads((folder / "r.jsonl.fit.json").read_text())["fit"])
    assert {name: own.value for name, own in stored.temperatures.items()} == {
        member.called: member.temperature for member in config.members
    }
    assert "negative log-likelihood" in printed
    words = " ".join(printed.split())
    assert re.search(
        r"Warning: 16 questions with at most \d+ right answers are few|had a right answer to these 16 ques", words
    )
    for name, own in stored.temperatures.items():
        assert (f"Warning: the temperature {own.value:g} of {name} is an end" in words) == (own.value in (0.25, 4))
    for name, member in found.members.items():
        assert name in printed
        assert member.hurts == (member.weight == 0)
        assert f"The ensemble is better without {name}" in printed or not member.hurts


def test_diagrams_are_written_and_need_no_network(finished):
    folder, _ = finished
    assert (folder / "d" / "reliability.png").read_bytes().startswith(b"\x89PNG")
    page = (folder / "d" / "reliability.html").read_text()
    for name in ("ash", "birch", "cedar", "every step", "bridges"):
        assert name in page
    assert "<script" not in page
    assert 'src="http' not in page


def test_a_threshold_is_that_of_generated_answers(finished, data, tmp_path):
    """Answers that were not generated again are those that the threshold gives."""
    folder, _ = finished
    fit = json.loads((folder / "r.jsonl.fit.json").read_text())
    names = [folder_.rpartition("/")[2] for folder_ in EMBEDDED]
    fit["fit"]["mixture"] |= {"weights": dict(zip(names, (0.2, 0.4, 0.4), strict=True)), "hurts": []}
    for name in names:
        fit["fit"]["temperatures"][name]["value"] = 1.5
    (tmp_path / "r.jsonl.fit.json").write_text(json.dumps(fit))
    out = ["--out", tmp_path / "c.yaml", "--results", tmp_path / "r.jsonl", "--gate", "ash"]
    done = calibrate(*EMBEDDED, "--data", data, "--dtype", "float32", "--share", "0.02", *out)
    assert done.exit_code == 0, done.output
    config = EnsembleConfig(EMBEDDED, calibration=tmp_path / "c.yaml")
    assert config.gate == "ash"
    assert 0 < config.threshold < 1
    _, settings, answers = read_lines(tmp_path / "r.jsonl")
    every = {key: each for key, each in answers.items() if key[0].startswith("every step")}
    label = next(label for label in settings if label.startswith("gate"))
    assert 0 < sum(key[0] == label for key in answers) < 16
    task = make_task(read_questions(data), PromptForm(), [metric_named("f1")])
    members = [{"model": folder_, "dtype": "float32"} for folder_ in EMBEDDED]
    with Ensemble.from_config(EnsembleConfig(members, calibration=tmp_path / "c.yaml")) as ensemble:
        for question in task.questions.questions:
            output = ensemble.generate(task.prompt(question).prompt, max_tokens=32)
            derived = answers.get((label, *question.key)) or every[next(k for k in every if k[1:] == question.key)]
            assert output.text == derived.text


def test_a_run_continues_without_answering_again(finished, data):
    folder, _ = finished
    before = (folder / "r.jsonl").read_bytes()
    out = ["--out", folder / "again.yaml", "--results", folder / "r.jsonl"]
    done = calibrate(*EMBEDDED, "--data", data, "--dtype", "float32", "--share", "0.5", *out)
    assert done.exit_code == 0, done.output
    assert (folder / "r.jsonl").read_bytes() == before
    assert (folder / "again.yaml").read_text() == (folder / "c.yaml").read_text()


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        (EMBEDDED[:1], "'ash' is the only member, so that there is nothing to weigh; give two models or more"),
        ([*EMBEDDED, "--gate", "oak"], "the gate 'oak' is not a member; members are: ash, birch, cedar"),
        ([*EMBEDDED, "--share", "0.5", "--accuracy", "0.5"], "give --accuracy 0.5 or --share 0.5, not both"),
        ([*EMBEDDED, "--limit", "1"], "of 1 questions . are in the first half and . in the second; give more"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(data, tmp_path, arguments, reason):
    done = calibrate(*arguments, "--data", data, "--out", tmp_path / "c.yaml")
    assert done.exit_code == 2
    assert re.search(reason, " ".join(done.output.split())), done.output
    assert not (tmp_path / "c.yaml").exists()


def test_empty_data_are_refused(tmp_path):
    path = tmp_path / "empty.jsonl"
    path.write_text("\n")
    done = calibrate(*EMBEDDED, "--data", path)
    assert done.exit_code == 2
    assert "has no questions" in done.output
