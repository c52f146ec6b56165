"""A threshold for a wanted accuracy or cost, with as few answers generated again as possible."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from gac_core.calibration.traces import Traces, share_ensembled, threshold_for_share
from gac_core.ensemble import Ensemble
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.questions import Half, Question
from gac_core.evaluation.results import Results
from gac_core.evaluation.run import run
from gac_core.evaluation.settings import Setting, thresholded
from gac_core.evaluation.task import Task

CANDIDATES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99)
"""Thresholds that are tried for a wanted accuracy, the cheapest first."""


@dataclass(frozen=True)
class Point:
    """Accuracy and cost of one setting on one half.

    Attributes:
        score: Mean value of the first metric.
        share: Share of the steps that are ensembled.
        questions: Number of questions.
        generated: How many of the answers were generated for it; the others are those of every step.
    """

    score: float
    share: float
    questions: int
    generated: int


@dataclass(frozen=True)
class Threshold:
    """A chosen threshold.

    Attributes:
        value: The threshold.
        chosen: On the half on which it was chosen.
        report: On the other half.
        every_step: Every step, on the other half.
    """

    value: float
    chosen: Point
    report: Point
    every_step: Point


class ThresholdSearch:
    """Evaluates thresholds of one gate from the answers of every step.

    Args:
        ensemble: Generates the answers that can change.
        tasks: The questions.
        results: Has the answers of ``every_step``, and receives those that are generated.
        traces: Their traces.
        every_step: The setting that ensembles every step.
        gate: Name of the gate, a member with a weight above 0.
    """

    def __init__(
        self,
        ensemble: Ensemble,
        tasks: Sequence[Task],
        results: Results,
        traces: Traces,
        every_step: Setting,
        gate: str,
    ) -> None:
        self._ensemble = ensemble
        self._tasks = tasks
        self._results = results
        self._traces = traces
        self._every_step = every_step
        self._gate = gate

    def find(self, accuracy: float | None = None, share: float | None = None) -> Threshold:
        """Returns the threshold for a wanted accuracy or cost.

        Args:
            accuracy: Wanted mean of the first metric on the first half, 0 to 1. Default: that of every step.
            share: Instead, the largest share of steps to ensemble on the first half, 0 to 1.

        Raises:
            EvaluationError: No threshold has the accuracy.
        """
        if share is not None:
            own = [self._traces.by_key[each.key] for each in self._questions("choose")]
            value = threshold_for_share(own, self._gate, share)
            chosen = self.point(value, "choose")
        else:
            value, chosen = self._for_accuracy(accuracy)
        return Threshold(value, chosen, self.point(value, "report"), self.every_step("report"))

    def _for_accuracy(self, accuracy: float | None) -> tuple[float, Point]:
        wanted = self.every_step("choose").score if accuracy is None else accuracy
        best = 0.0
        for value in CANDIDATES:
            point = self.point(value, "choose")
            if point.score >= wanted - 1e-9:
                return value, point
            best = max(best, point.score)
        every = self.every_step("choose")
        if every.score >= wanted - 1e-9:
            # A threshold of 1 ensembles every step of which the gate is not absolutely certain.
            return 1.0, self.point(1.0, "choose")
        raise EvaluationError(
            f"no threshold reaches the accuracy {wanted:g} on the first half of the questions; the best one reaches "
            f"{max(best, every.score):.3f}, every step {every.score:.3f}: ask for less, or leave --accuracy out"
        )

    def every_step(self, half: Half) -> Point:
        """Returns accuracy and cost of every step."""
        answers = [self._results.answers[self._every_step.label, *each.key] for each in self._questions(half)]
        return Point(sum(each.score for each in answers) / len(answers), 1.0, len(answers), 0)

    def point(self, threshold: float, half: Half) -> Point:
        """Returns accuracy and cost of a threshold; generates the answers that can differ from those of every step."""
        setting = self.setting(threshold)
        questions = list(self._questions(half))
        changed = [each for each in questions if self._traces.by_key[each.key].can_change(self._gate, threshold)]
        self._generate(setting, changed)
        again = {each.key for each in changed}
        score = steps = ensembled = 0.0
        for question in questions:
            if question.key in again:
                answer = self._results.answers[setting.label, *question.key]
                steps, ensembled = steps + answer.steps, ensembled + answer.ensembled
            else:
                answer = self._results.answers[self._every_step.label, *question.key]
                trace = self._traces.by_key[question.key]
                steps, ensembled = steps + len(trace.steps), ensembled + trace.ensembled(self._gate, threshold)
            score += answer.score
        return Point(score / len(questions), ensembled / steps if steps else 0.0, len(questions), len(changed))

    def setting(self, threshold: float) -> Setting:
        """Returns the setting of a threshold."""
        weights = self._every_step.weights
        assert isinstance(weights, Mapping), "a calibration gives weights by name"
        return thresholded([*weights], self._gate, threshold, [*weights.values()], self._every_step.combine)

    def estimate(self, threshold: float) -> float:
        """Returns the share of steps that a threshold ensembles over all questions, if texts stayed the same."""
        return share_ensembled(list(self._traces.by_key.values()), self._gate, threshold)

    def _questions(self, half: Half) -> Iterable[Question]:
        return (each for task in self._tasks for each in task.questions.questions if each.half == half)

    def _generate(self, setting: Setting, questions: Sequence[Question]) -> None:
        wanted = {each.key for each in questions}
        tasks = [
            replace(task, questions=replace(task.questions, questions=own))
            for task in self._tasks
            if (own := tuple(each for each in task.questions.questions if each.key in wanted))
        ]
        if tasks:
            run(self._ensemble, tasks, [setting], self._results)
