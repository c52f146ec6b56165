"""The settings that an evaluation compares when none are given, and the order in which they are run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from gac_core.ensemble import Ensemble
from gac_core.evaluation.questions import Half
from gac_core.evaluation.results import Results
from gac_core.evaluation.run import ROUND, Progress, Stage, check_settings, run
from gac_core.evaluation.settings import Setting, Weights, alone, every_step, self_consistency, thresholded
from gac_core.evaluation.task import Task, count_questions

THRESHOLDS = (0.5, 0.7, 0.9)
MIN_SAMPLES, MAX_SAMPLES = 3, 16


@dataclass(frozen=True)
class EvaluationPlan:
    """What to compare, beside each member alone.

    Attributes:
        weights: Weights of the members, one tuple each, or the name of their source; None: the ensemble's own.
        thresholds: Thresholds, each with all of the weights. Default 0.5, 0.7 and 0.9.
        gate: The gate of the thresholds. None (default): the member with the best score on the first questions.
        combine: As `SamplingParams.combine`. None (default): the ensemble's.
        gate_rule: As `SamplingParams.gate_rule`. None (default): the ensemble's.
        baseline: Whether to compare with several samples of the best member and a majority vote (self-consistency), as
            many as cost about as much as the first ensemble. Default True.
    """

    weights: tuple[Weights | None, ...] = (None,)
    thresholds: tuple[float, ...] = THRESHOLDS
    gate: str | None = None
    combine: str | None = None
    gate_rule: str | None = None
    baseline: bool = True

    def first(self, names: Sequence[str]) -> list[Setting]:
        """Returns the settings that need no measurement: each member alone, and every step with each of the weights."""
        members = [alone(name) for name in names]
        if len(names) == 1:
            return members
        return members + [every_step(names, weights, self.combine) for weights in self.weights]

    def gated(self, names: Sequence[str], gate: str) -> list[Setting]:
        """Returns the thresholded settings; without weights in which the gate takes no part, unless it was given."""
        if len(names) == 1:
            return []
        usable = [
            weights
            for weights in self.weights
            if weights is None or isinstance(weights, str) or self.gate is not None or weights[names.index(gate)] > 0
        ]
        return [
            thresholded(names, gate, threshold, weights, self.combine, self.gate_rule)
            for weights in usable
            for threshold in self.thresholds
        ]

    def possible(self, names: Sequence[str]) -> list[Setting]:
        """Returns every setting that may be run, for checks before anything is computed; without the baseline."""
        gates = [*names] if self.gate is None else [self.gate]
        gated = [setting for gate in gates for setting in self.gated(names, gate)]
        return [*self.first(names), *map(alone, gates), *gated]


def compare_settings(
    ensemble: Ensemble,
    tasks: Sequence[Task],
    plan: EvaluationPlan,
    results: Results,
    stage: Stage | None = None,
    progress: Progress | None = None,
    count_errors: bool = False,
) -> list[Setting]:
    """Answers all questions with all settings of a plan, on one ensemble.

    Up to 32 questions of each task, drawn at random from the half on which settings are chosen, are answered first by
    each member and the ensembles. They determine the gate, where none is given, and the number of samples of the
    baseline. Only where no task has questions of this half, they are those of the other one.

    Args:
        ensemble: Answers.
        tasks: The questions.
        plan: What to compare.
        results: Receives the answers.
        stage: Called at the beginning of each of the two parts, with its description and number of answers.
        progress: As in `run`.
        count_errors: As in `run`.

    Returns:
        The settings, in the order of a report.

    Raises:
        EvaluationError: As in `run`.
    """
    names = ensemble.names
    first = plan.first(names)
    check_settings(ensemble, plan.possible(names), tasks)
    probe = _first_questions(tasks, "choose") or _first_questions(tasks, "report")
    if stage is not None:
        stage("first questions", len(first) * count_questions(probe))
    run(ensemble, probe, first, results, progress, count_errors)
    best = best_member(names, probe, results)
    later = plan.gated(names, plan.gate or best)
    if plan.baseline and len(names) > 1:
        later.append(self_consistency(best, equal_samples(ensemble, best, first[len(names)], probe, results)))
    if stage is not None:
        stage("all questions", len([*first, *later]) * count_questions(tasks))
    run(ensemble, tasks, [*first, *later], results, progress, count_errors)
    return [*first, *later]


def _first_questions(tasks: Sequence[Task], half: Half) -> list[Task]:
    """Returns the tasks that have questions of a half, with up to 32 of them each."""
    parts = [replace(task, questions=task.questions.limited(ROUND, half)) for task in tasks]
    return [task for task in parts if task.questions.questions]


def best_member(names: Sequence[str], tasks: Sequence[Task], results: Results) -> str:
    """Returns the member with the highest mean score alone; the first one of equals."""
    keys = [question.key for task in tasks for question in task.questions.questions]
    return max(names, key=lambda name: sum(results.answers[name, *key].score for key in keys))


def equal_samples(ensemble: Ensemble, member: str, setting: Setting, tasks: Sequence[Task], results: Results) -> int:
    """Returns how many samples of a member cost about as much as a setting, 3 to 16.

    The cost is evaluations of members times the bytes of the weights, which they read. The prompt of a question is
    computed once for all of its samples (prefix caching).

    Args:
        ensemble: The ensemble.
        member: The member that is sampled.
        setting: The ensemble to compare with, which combines every step.
        tasks: Questions that the member alone and the setting have answered.
        results: Their answers.
    """
    sizes: Mapping[str, int] = {each.name: each.weight_bytes for each in ensemble.health().members}
    keys = [question.key for task in tasks for question in task.questions.questions]
    budget = spent = 0
    for key in keys:
        answer = results.answers[setting.label, *key]
        budget += sum(sizes[name] for name in answer.members) * answer.steps
        spent += sizes[member] * results.answers[member, *key].steps
    return max(MIN_SAMPLES, min(MAX_SAMPLES, round(budget / spent))) if spent else MIN_SAMPLES
