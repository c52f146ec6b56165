"""Searches for settings on the embedded members, and `gac sweep`."""

from __future__ import annotations

import csv

import pytest
from conftest import EMBEDDED
from questions import SYSTEM, write_questions
from typer.testing import CliRunner

from gac_core import Ensemble
from gac_core.cli import app
from gac_core.evaluation import sweep as sweeping
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.header import header_of
from gac_core.evaluation.metrics import METRICS
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import read_questions
from gac_core.evaluation.results import Results
from gac_core.evaluation.settings import alone, every_step, thresholded
from gac_core.evaluation.statistics import Interval
from gac_core.evaluation.summary import Cost
from gac_core.evaluation.sweep import Grid, Trial, configured_as, default_weights, front, sweep
from gac_core.evaluation.task import make_task

NAMES = ("ash", "birch", "cedar")


def searched(ensemble, path, grid, every=False, results=None):
    task = make_task(read_questions(path), PromptForm(instruction=SYSTEM), [METRICS["exact"]])
    header = header_of(ensemble.config, [task])
    results = results or Results(header)
    return sweep(ensemble, [task], grid, results, every), results, task


def test_default_weights_are_no_multiples_of_one_another():
    assert default_weights(2) == ((1, 1), (1, 2), (2, 1))
    three = default_weights(3)
    assert len(three) == len(set(three)) == 16
    assert {(1, 1, 1), (0, 1, 2), (1, 2, 2)} < set(three)
    assert (2, 2, 2) not in three
    assert default_weights(4)[0] == (1, 1, 1, 1)
    assert len(default_weights(4)) == 9


def test_a_search_drops_settings_on_the_way(ensemble, tmp_path, monkeypatch):
    monkeypatch.setattr(sweeping, "FIRST_RUNG", 4)
    path = write_questions(tmp_path / "handbook.jsonl", 14, seed=4)
    grid = Grid(((1, 1, 0), (0, 1, 1), (1, 0, 1), (1, 2, 2)), (None,), NAMES, (None,), (0.6,))
    found, results, task = searched(ensemble, path, grid)
    count = len(task.questions.limited(half="choose").questions)
    assert 4 < count < 14
    by_label = {trial.setting.label: trial for trial in found.trials}
    steps = [trial for trial in found.trials if trial.setting.threshold is None]
    assert len(steps) == 4
    assert sorted(trial.questions for trial in steps)[:2] == [4, 4]
    assert [trial.dropped for trial in steps] == [trial.questions < count for trial in steps]
    kept = {tuple(trial.setting.weights.items()) for trial in steps if not trial.dropped}
    gated = [trial for trial in found.trials if trial.setting.threshold == 0.6]
    assert {tuple(trial.setting.weights.items()) for trial in gated} <= kept
    assert all(trial.setting.weights[trial.setting.gate] > 0 for trial in gated)
    assert not by_label[found.best.label].dropped
    # The other half is answered by the members and the chosen setting alone.
    report = {question.id for question in task.questions.limited(half="report").questions}
    asked = {answer.setting for answer in results.answers.values() if answer.id in report}
    assert asked == {*NAMES, found.best.label}
    assert found.recommendation.questions == len(report)
    assert f"chosen among {len(found.trials) - 3} on one half" in found.recommendation.text
    # A search on its own results computes nothing and finds the same.
    before = dict(results.answers)
    again, _, _ = searched(ensemble, path, grid, results=results)
    assert results.answers == before
    assert (again.best, again.front) == (found.best, found.front)


def test_a_grid_answers_everything(ensemble, tmp_path):
    path = write_questions(tmp_path / "handbook.jsonl", 4, seed=4)
    found, results, task = searched(
        ensemble, path, Grid(((0, 1, 1), (1, 2, 2)), (None, "geometric"), ("birch",), (None,), (0.6,)), every=True
    )
    assert len(found.trials) == 3 + 4 + 4
    assert not any(trial.dropped for trial in found.trials)
    choose = {question.id for question in task.questions.limited(half="choose").questions}
    for trial in found.trials:
        assert {answer.id for answer in results.of(trial.setting.label)} >= choose


def test_a_half_without_questions_is_refused(ensemble, tmp_path):
    path = write_questions(tmp_path / "one.jsonl", 1, seed=4)
    with pytest.raises(EvaluationError, match="too few to be divided into halves"):
        searched(ensemble, path, Grid(((1, 1, 1),), (None,), NAMES, (None,), (0.5,)))


def test_the_front_has_the_best_at_each_cost():
    def trial(name, evaluations, score, dropped=False):
        cost = Cost(1, 1, evaluations, {}, {}, 0)
        return Trial(alone(name), 10, Interval(score, 0, 1), cost, dropped)

    cheap, worse, better, dear, early = (
        trial("cheap", 1, 0.5),
        trial("worse", 2, 0.4),
        trial("better", 3, 0.6),
        trial("dear", 4, 0.6),
        trial("early", 1, 0.9, dropped=True),
    )
    assert front([dear, early, better, worse, cheap]) == (cheap, better)


def test_the_configuration_of_a_setting(ensemble):
    config = configured_as(ensemble.config, thresholded(NAMES, "cedar", 0.7, (0, 1, 2), "geometric", "margin"))
    assert [(member.called, member.weight) for member in config.members] == [("birch", 1), ("cedar", 2)]
    assert (config.gate, config.threshold, config.combine, config.gate_rule) == ("cedar", 0.7, "geometric", "margin")
    same = configured_as(config, every_step(("birch", "cedar")))
    assert [member.weight for member in same.members] == [1, 2]
    assert (same.gate, same.threshold, same.combine) == (None, None, "geometric")


def test_the_command(tmp_path):
    data = write_questions(tmp_path / "handbook.jsonl", 6, seed=4)
    out = tmp_path / "out"
    arguments = ["sweep", *EMBEDDED[:2], "--dtype", "float32", "--data", str(data), "--instruction", SYSTEM]
    arguments += ["--weights", "1:1", "--weights", "1:2", "--threshold", "0.6", "--gate", "birch", "--out", str(out)]
    shown = CliRunner().invoke(app, arguments)
    assert shown.exit_code == 0, shown.output
    assert "settings on one half of the questions" in shown.output
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [row["setting"] for row in rows[:2]] == ["ash", "birch"]
    assert {row["weights"] for row in rows[2:]} == {"1:1", "1:2"}
    assert (out / "pareto.png").read_bytes().startswith(b"\x89PNG")
    with Ensemble.from_config(out / "best.yaml") as best:
        weights = {member.called: member.weight for member in best.config.members}
        assert set(weights) == {"ash", "birch"}
        assert best.config.threshold in (None, 0.6)
    wrong = CliRunner().invoke(app, [*arguments, "--gate", "none"])
    assert wrong.exit_code == 2
    assert "the gate 'none' is not a member" in wrong.stderr
    wrong = CliRunner().invoke(app, [*arguments[:-1], str(data)])
    assert "--out must be a folder" in wrong.stderr
