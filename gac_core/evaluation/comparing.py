"""The settings that an evaluation compares when none are given, and the order in which they are run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from gac_core.ensemble import Ensemble
from gac_core.evaluation.results import Results
from gac_core.evaluation.run import ROUND, Progress, Task, check_settings, run
from gac_core.evaluation.settings import Setting, alone, every_step, self_consistency, thresholded

THRESHOLDS = (0.5, 0.7, 0.9)
MIN_SAMPLES, MAX_SAMPLES = 3, 16


@dataclass(frozen=True)
class EvaluationPlan:
    """What to compare, beside each member alone.

    Attributes:
        weights: Weights of the members, one tuple each; None: the ensemble's own.
        thresholds: Thresholds, each with all of the weights. Default 0.5, 0.7 and 0.9.
        gate: The gate of the thresholds. None (default): the member with the best score on the first round.
        combine: As `SamplingParams.combine`. None (default): the ensemble's.
        gate_rule: As `SamplingParams.gate_rule`. None (default): the ensemble's.
        baseline: Whether to compare with several samples of the best member and a majority vote (self-consistency), as
            many as compute about as much as the first ensemble. Default True.
    """

    weights: tuple[tuple[float, ...] | None, ...] = (None,)
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
        """Returns the thresholded settings."""
        if len(names) == 1:
            return []
        return [
            thresholded(names, gate, threshold, weights, self.combine, self.gate_rule)
            for weights in self.weights
            for threshold in self.thresholds
        ]


def compare_settings(
    ensemble: Ensemble,
    tasks: Sequence[Task],
    plan: EvaluationPlan,
    results: Results,
    progress: Progress | None = None,
    planned: Callable[[Sequence[Setting]], None] | None = None,
    count_errors: bool = False,
) -> list[Setting]:
    """Answers all questions with all settings of a plan, on one ensemble.

    Up to 32 questions of each task, drawn at random, are answered first by each member and the ensembles. They
    determine the gate, where none is given, and the number of samples of the baseline.

    Args:
        ensemble: Answers.
        tasks: The questions.
        plan: What to compare.
        results: Receives the answers.
        progress: As in `run`.
        planned: Called with settings once they are known, before they are run.
        count_errors: As in `run`.

    Returns:
        The settings, in the order of a report.

    Raises:
        EvaluationError: As in `run`.
    """
    names = ensemble.names
    first = plan.first(names)
    check_settings(ensemble, [*first, *plan.gated(names, plan.gate or names[0])], tasks)
    if planned is not None:
        planned(first)
    probe = [replace(task, questions=task.questions.limited(ROUND)) for task in tasks]
    run(ensemble, probe, first, results, None, count_errors)
    best = best_member(names, probe, results)
    later = plan.gated(names, plan.gate or best)
    if plan.baseline and len(names) > 1:
        later.append(self_consistency(best, equal_samples(ensemble, best, first[len(names)], probe, results)))
    if planned is not None:
        planned(later)
    run(ensemble, tasks, [*first, *later], results, progress, count_errors)
    return [*first, *later]


def best_member(names: Sequence[str], tasks: Sequence[Task], results: Results) -> str:
    """Returns the member with the highest mean score alone; the first one of equals."""
    keys = [question.key for task in tasks for question in task.questions.questions]
    return max(names, key=lambda name: sum(results.answers[name, *key].score for key in keys))


def equal_samples(ensemble: Ensemble, member: str, setting: Setting, tasks: Sequence[Task], results: Results) -> int:
    """Returns how many samples of a member compute about as much as a setting, 3 to 16.

    Computation is tokens times the bytes of the weights. The samples of a question share its prompt, which is computed
    once (prefix caching).

    Args:
        ensemble: The ensemble.
        member: The member that is sampled.
        setting: The ensemble to compare with.
        tasks: Questions that the member alone and the setting have answered.
        results: Their answers.
    """
    sizes: Mapping[str, int] = {each.name: each.weight_bytes for each in ensemble.health().members}
    keys = [question.key for task in tasks for question in task.questions.questions]
    budget = prompts = generated = 0
    for key in keys:
        works = results.answers[setting.label, *key].members
        budget += sum(sizes[name] * (work.tokens + work.reused_tokens) for name, work in works.items())
        for work in results.answers[member, *key].members.values():
            prompts += work.prompt_tokens
            generated += max(work.tokens + work.reused_tokens - work.prompt_tokens, 1)
    if not generated or not sizes[member]:
        return MIN_SAMPLES
    samples = (budget / sizes[member] - prompts) / generated
    return max(MIN_SAMPLES, min(MAX_SAMPLES, round(samples)))
