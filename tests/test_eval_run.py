"""Runs of evaluations on the embedded members: results, resumption, failures and recommendations."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from conftest import ensemble_of, talking_pairs
from faulty import faulty_ensemble
from questions import SYSTEM, write_questions

from gac_core import EnsembleConfig
from gac_core.evaluation.comparing import EvaluationPlan, best_member, compare_settings
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.header import Header, header_of
from gac_core.evaluation.metrics import metric_named
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import read_questions
from gac_core.evaluation.recommend import recommend
from gac_core.evaluation.results import Answer, Results, read_lines
from gac_core.evaluation.run import majority, run
from gac_core.evaluation.settings import alone, every_step, self_consistency, thresholded
from gac_core.evaluation.summary import tables
from gac_core.evaluation.task import make_task
from gac_core.output import MemberStats

NAMES = ("ash", "birch", "cedar")
FORM = PromptForm("chat", instruction=SYSTEM)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions about passages that the embedded members can answer."""
    return write_questions(tmp_path_factory.mktemp("data") / "handbook.jsonl", 6)


def task_of(path, form=FORM, metrics=("exact", "f1"), limit=None):
    return make_task(read_questions(path).limited(limit), form, [metric_named(name) for name in metrics])


def results_of(config, task, path=None):
    return Results(header_of(config, [task]), path)


@pytest.fixture(scope="module")
def finished(ensemble, data, tmp_path_factory):
    """A finished comparison, with the file of its results."""
    task = task_of(data)
    results = results_of(ensemble.config, task, tmp_path_factory.mktemp("results") / "results.jsonl")
    plan = EvaluationPlan(((1.0, 2.0, 2.0),), (0.7,))
    return compare_settings(ensemble, [task], plan, results), results, task


def test_settings_of_a_comparison(finished):
    settings, results, task = finished
    best = best_member(NAMES, [task], results)
    labels = [*NAMES, "every step, weights 1:2:2", f"gate {best} at 0.7, weights 1:2:2"]
    assert [setting.label for setting in settings[:-1]] == labels
    assert (settings[-1].gate, settings[-1].temperature) == (best, 0.7)
    assert 3 <= settings[-1].samples <= 16
    assert len(results.answers) == len(settings) * 6


def test_weights_without_the_gate_have_no_thresholds():
    plan = EvaluationPlan(((1.0, 2.0), (0.0, 1.0)), (0.5,))
    assert [setting.label for setting in plan.gated(("a", "b"), "a")] == ["gate a at 0.5, weights 1:2"]
    assert len(plan.gated(("a", "b"), "b")) == 2
    assert len(replace(plan, gate="a").gated(("a", "b"), "a")) == 2  # which the ensemble refuses
    assert [setting.label for setting in plan.first(("a",))] == ["a"]
    assert plan.gated(("a",), "a") == []


def test_answers_are_those_of_plain_calls(ensemble, finished):
    settings, results, task = finished
    question = task.questions.questions[5]
    for setting in settings[:-1]:
        output = ensemble.generate(
            task.prompt(question).prompt, max_tokens=32, drafts=False, token_stats=True, **setting.overrides()
        )
        answer = results.answers[setting.label, "handbook", question.id]
        assert answer.text == output.text
        assert (answer.steps, answer.ensembled) == (output.stats.steps, output.stats.steps_ensembled)
        assert set(answer.members) == set(output.stats.members)
        assert answer.scores == {
            "exact": float(output.text == question.answers[0]),
            "f1": pytest.approx(answer.scores["f1"]),
        }
        product = 1.0
        for token in output.token_stats:
            product *= token.confidence
        assert answer.confidence == pytest.approx(product, rel=1e-3)


def test_a_run_continues_and_repairs_a_torn_line(ensemble, finished, tmp_path):
    settings, results, task = finished
    lines = results.path.read_text().splitlines(keepends=True)
    path = tmp_path / "results.jsonl"
    path.write_text("".join(lines[:-3]) + lines[-3][:40])
    again = results_of(ensemble.config, task, path)
    assert len(again.answers) == len(results.answers) - 3
    run(ensemble, [task], settings, again)
    assert again.answers.keys() == results.answers.keys()
    # The torn line is gone, and a finished run computes nothing.
    assert len(path.read_text().splitlines()) == len(lines)
    before = path.read_bytes()
    run(ensemble, [task], settings, results_of(ensemble.config, task, path))
    assert path.read_bytes() == before
    header, known, answers = read_lines(path)
    assert (header, known) == (replace(results.header, members=header.members), results.settings)
    assert {key: answer.text for key, answer in answers.items()}.keys() == results.answers.keys()


def test_results_of_another_run_are_refused(ensemble, finished, data, tmp_path):
    _, results, task = finished
    other = EnsembleConfig(("x", *ensemble.config.members[1:]))
    for config, changed, message in (
        (other, task, r"differs in members: .*'x' now"),
        (ensemble.config, task_of(data, PromptForm("plain")), "differs in form: handbook: .*'plain' now"),
        (ensemble.config, task_of(data, metrics=("f1",)), r"differs in metrics: .* \['f1'\] now"),
        (replace(ensemble.config, combine="geometric"), task, "differs in ensemble: combine: 'arithmetic' in the file"),
    ):
        with pytest.raises(EvaluationError, match=message):
            results_of(config, changed, results.path)
    longer = tmp_path / "handbook.jsonl"
    longer.write_text(data.read_text() + json.dumps({"question": "Who?", "answer": "x"}))
    with pytest.raises(EvaluationError, match="differs in the questions: those of 'handbook' are not the same"):
        results_of(ensemble.config, task_of(longer), results.path)
    with pytest.raises(EvaluationError, match=r"the setting 'ash' is .* in the file and .* now"):
        results.use(replace(alone("birch"), label="ash"))
    for content, message in (
        ('{"question": "x"}\n', "line 1: it is not a line of a results file"),
        ("no\n", "line 1: it is damaged"),
        ('{"type": "answer"}\n', "is not a results file of gac eval"),
        (results.path.read_text() + '{"type": "answer", "id": "1"}\n', r"line \d+: it is damaged"),
    ):
        (tmp_path / "wrong.jsonl").write_text(content)
        with pytest.raises(EvaluationError, match=message):
            results_of(ensemble.config, task, tmp_path / "wrong.jsonl")


def test_a_member_that_fails_half_way(data, tmp_path):
    task = task_of(data, limit=4)
    settings = [alone("m0"), alone("m1"), every_step(("m0", "m1", "m2"))]
    broken = "m1"
    with faulty_ensemble() as (one, executor):
        results = results_of(one.config, task, tmp_path / "results.jsonl")
        executor.script = lambda name, request_id: "raise" if name == broken else None
        with pytest.raises(EvaluationError) as caught:
            run(one, [task], settings, results)
        question = task.questions.questions[0].id
        assert (caught.value.member, caught.value.question) == ("m1", question)
        assert f"question '{question}' of 'handbook' could not be answered with 'm1': member 'm1' failed" in str(
            caught.value
        )
        assert [each.setting for each in results.answers.values()] == ["m0"] * 4
        counted = results_of(one.config, task)
        run(one, [task], settings[1:2], counted, count_errors=True)
        assert [(each.score, "m1" in each.error) for each in counted.answers.values()] == [(0.0, True)] * 4
        executor.script = lambda name, request_id: None
        again = results_of(one.config, task, tmp_path / "results.jsonl")
        run(one, [task], settings, again)
        assert len(again.answers) == 12
        assert all(each.error is None for each in again.answers.values())


def test_settings_are_checked_before_anything_is_computed(data):
    task = task_of(data, limit=2)
    with ensemble_of(talking_pairs(templates=False)) as one:
        with pytest.raises(EvaluationError, match=r"member 'm0' has no chat template.*--form plain.*chat_template"):
            run(one, [task], [every_step(("m0", "m1"))], results_of(one.config, task))
        for setting, message in (
            (alone("none"), "the setting 'none' cannot be used: the gate 'none' is not a member"),
            (thresholded(("m0", "m1"), "m0", 0.5, (0, 1)), "the gate 'm0' has the weight 0"),
        ):
            with pytest.raises(EvaluationError, match=message):
                run(one, [task], [setting], results_of(one.config, task))


def test_majority():
    assert majority([("a", "A!"), ("b", "B"), ("a", "A")]) == ("A!", 2 / 3)
    assert majority([("b", "B"), ("a", "A")]) == ("B", 0.5)
    assert majority([("", "x"), ("", "y"), ("a", "A")]) == ("A", 1 / 3)
    assert majority([("", "x"), ("", "y")]) == ("x", 1.0)


def test_settings_with_weights_from_each_prompt_are_answered(ensemble, data):
    task, setting = task_of(data, limit=2), every_step(NAMES, "perplexity")
    results = results_of(ensemble.config, task)
    run(ensemble, [task], [setting], results)
    assert (setting.label, setting.shown_weights) == ("every step, weights perplexity", "perplexity")
    assert {len(each.members) for each in results.of(setting.label)} == {3}


def test_a_file_of_another_calibration_is_refused(ensemble, data, tmp_path):
    task = task_of(data, limit=1)

    def calibrated(weight):
        members = {name: {"weight": weight if name == "ash" else 1.0} for name in NAMES}
        return replace(ensemble.config, calibration={"version": 1, "members": members})

    results_of(calibrated(2.0), task, tmp_path / "r.jsonl")
    with pytest.raises(EvaluationError, match=r"differs in ensemble: calibration: ash: 2.0 in the file, 3.0 now"):
        results_of(calibrated(3.0), task, tmp_path / "r.jsonl")


def scored(rows, tasks=("t",)):
    """Results with given scores: per setting, one per question; a threshold ensembles two of ten steps."""
    header = Header({}, [{"name": "a"}, {"name": "b"}], {}, {}, {task: ["exact"] for task in tasks})
    results = Results(header)
    for setting, scores in rows.items():
        results.use(setting)
        gated = setting.threshold is not None
        # The forward passes are no measure: the second member reads its prompt in many parts.
        other = {} if setting.alone else {"b": MemberStats(forwards=40 if gated else 10)}
        work = {"a": MemberStats(forwards=10), **other}
        ensembled = 0 if setting.alone else 2 if gated else 10
        results.add(
            [
                Answer(setting.label, tasks[place % len(tasks)], str(place), "", {"exact": score}, 10, ensembled, work)
                for place, score in enumerate(scores)
            ]
        )
    return results, list(rows)


def every(share, count=400):
    """Scores of which this share is 1, evenly spread."""
    return [float(int((place + 1) * share) > int(place * share)) for place in range(count)]


A, B, STEP = alone("a"), alone("b"), every_step(("a", "b"), (1, 2))
GATED = thresholded(("a", "b"), "b", 0.7, (1, 2))


def test_a_better_ensemble_is_recommended_with_its_cheap_threshold():
    better = [max(pair) for pair in zip(every(0.5), every(0.2), strict=True)]
    results, settings = scored({A: every(0.3), B: every(0.5), STEP: better, GATED: better})
    advice = recommend(results, settings)
    assert (advice.verdict, advice.setting, advice.member, advice.held_out) == ("ensemble", GATED, B, True)
    assert 150 < advice.questions < 250
    assert advice.saved == 0.8
    assert advice.text.startswith("Use weights 1:2 with gate b at 0.7: +")
    assert "80% fewer ensembled steps. The setting was chosen among 2 on one half of the questions" in advice.text
    worse = [score * (place % 5 > 0) for place, score in enumerate(better)]
    results, settings = scored({A: every(0.3), B: every(0.5), STEP: better, GATED: worse})
    assert recommend(results, settings).text.startswith("Use weights 1:2 at every step: +")


def test_a_worse_ensemble_is_not_recommended():
    results, settings = scored({A: every(0.3), B: every(0.5), STEP: every(0.3)})
    advice = recommend(results, settings)
    assert (advice.verdict, advice.held_out, advice.questions) == ("alone", False, 400)
    assert advice.text.startswith("Do not ensemble: b alone is better. The best ensemble found, weights 1:2 at every")
    results, settings = scored({A: every(0.3), B: every(0.5), STEP: every(0.5)})
    assert "Do not ensemble: b alone is as good or better" in recommend(results, settings).text


def test_too_few_questions_are_said_to_be_too_few():
    ours = [0.0, 0.0, 1.0, 1.0] * 15 + [1.0]
    theirs = [0.0, 0.0, 1.0, 1.0] * 15 + [0.0]
    baseline = self_consistency("b", 4)
    results, settings = scored({A: [0.0] * 61, B: theirs, STEP: ours, baseline: [1.0] * 61}, ("t", "u"))
    advice = recommend(results, settings)
    assert advice.verdict == "undecided"
    assert "No difference can be shown with 61 questions." in advice.text
    assert "questions would be needed to show a difference of this size" in advice.text
    assert "By task: t +" in advice.text
    assert "Against a majority vote of 4 samples of b (self-consistency) it is worse: -" in advice.text
    made = tables(results, settings)
    assert [(table.task, table.questions, table.best) for table in made] == [
        ("t", 31, "b"),
        ("u", 30, "b"),
        ("all tasks", 61, "b"),
    ]
    with pytest.raises(EvaluationError, match="needs a member alone and an ensemble"):
        recommend(results, [A, B])


def test_no_right_answers_are_said_to_be_none():
    results, settings = scored({A: [0.0] * 9, B: [0.0] * 9, STEP: [0.0] * 9})
    advice = recommend(results, settings)
    assert advice.verdict == "none"
    assert advice.text.startswith("No setting had a right answer on these 9 questions")
    assert "--metric, for example contains" in advice.text
    results, settings = scored({A: [0.0] * 9, B: [0.0] * 9, STEP: [1.0] * 9})
    assert "+100.0 points [+100.0, +100.0] against a alone, which has no right answer there" in (
        recommend(results, settings).text
    )
