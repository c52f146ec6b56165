"""Tables of results: accuracy with intervals, differences to the best member, and cost."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.questions import Half
from gac_core.evaluation.results import Answer, Results
from gac_core.evaluation.settings import Setting
from gac_core.evaluation.statistics import Comparison, Interval, Values, comparison_of, interval_of, resampled_means

POOLED = "all tasks"


@dataclass(frozen=True)
class Cost:
    """Mean cost of an answer.

    Attributes:
        steps: Steps.
        share_ensembled: Share of all steps that combined all members.
        evaluations: Distributions that selected tokens, one for each member and step. Unlike forward passes, they do
            not depend on how many parts a long prompt is read in while other requests run.
        forwards: Forward passes by member; members that computed nothing are left out.
        tokens: Tokens computed by member, without those found in its KV cache.
        seconds: Time in seconds, in batches.
    """

    steps: float
    share_ensembled: float
    evaluations: float
    forwards: Mapping[str, float]
    tokens: Mapping[str, float]
    seconds: float


@dataclass(frozen=True)
class Row:
    """One setting on the questions of a table.

    Attributes:
        setting: The setting.
        score: Mean of the first metric.
        others: Means of the other metrics, by name.
        comparison: Against the best member; None for this member itself.
        cost: Its cost.
        errors: Questions without an answer, which count as wrong.
    """

    setting: Setting
    score: Interval
    others: Mapping[str, float]
    comparison: Comparison | None
    cost: Cost
    errors: int


@dataclass(frozen=True)
class Table:
    """All settings on the same questions.

    Attributes:
        task: Name of the set of questions, or ``"all tasks"``.
        metric: Name of the first metric.
        questions: Number of questions: those that every setting has answered.
        best: Label of the best member alone; None if no member was measured alone.
        rows: One per setting.
    """

    task: str
    metric: str
    questions: int
    best: str | None
    rows: tuple[Row, ...]

    def as_dict(self) -> dict[str, Any]:
        """Returns the table as plain values."""
        return asdict(self)


class Scores:
    """Answers of several settings to the same questions, in the same order.

    Args:
        results: The answers.
        settings: The settings; only questions that all of them have answered are used.
        tasks: Only questions of these tasks. Default: all.
        half: ``"choose"`` or ``"report"``: only questions of this half. Default: both.
        keys: Only questions with these tasks and ids. Default: all.

    Attributes:
        settings: The settings.
        keys: Task and id of each question.

    Raises:
        EvaluationError: No question was answered with all settings.
    """

    def __init__(
        self,
        results: Results,
        settings: Sequence[Setting],
        tasks: Iterable[str] | None = None,
        half: Half | None = None,
        keys: Collection[tuple[str, str]] | None = None,
    ) -> None:
        self.settings = tuple(settings)
        answers: dict[str, dict[tuple[str, str], Answer]] = {setting.label: {} for setting in settings}
        wanted = None if tasks is None else set(tasks)
        for answer in results.answers.values():
            question = (answer.task, answer.id)
            fits = (wanted is None or answer.task in wanted) and half in (None, answer.half)
            if answer.setting in answers and fits and (keys is None or question in keys):
                answers[answer.setting][question] = answer
        self.keys = sorted(set.intersection(*(set(each) for each in answers.values())) if answers else ())
        if not self.keys:
            raise EvaluationError("no question was answered with all settings; run the evaluation to its end")
        self._answers = {label: [each[key] for key in self.keys] for label, each in answers.items()}

    @property
    def tasks(self) -> list[str]:
        """The task of each question."""
        return [task for task, _ in self.keys]

    def answers(self, setting: Setting) -> list[Answer]:
        """Returns the answers of a setting, in the order of `keys`."""
        return self._answers[setting.label]

    def of(self, setting: Setting) -> list[float]:
        """Returns the scores of a setting, in the order of `keys`."""
        return [answer.score for answer in self._answers[setting.label]]

    def mean(self, setting: Setting) -> float:
        """Returns the mean score of a setting."""
        return sum(self.of(setting)) / len(self.keys)

    def compare(self, setting: Setting, other: Setting) -> Comparison:
        """Returns the paired differences of two settings; each task is resampled by itself."""
        first, second = (self._means[:, self.settings.index(each)] for each in (setting, other))
        return comparison_of(self.mean(setting), self.mean(other), first, second)

    def interval(self, setting: Setting) -> Interval:
        """Returns the mean score of a setting with its interval."""
        return interval_of(self.mean(setting), self._means[:, self.settings.index(setting)])

    @cached_property
    def _means(self) -> Values:
        """The means of all settings over the same resamples."""
        return resampled_means([self.of(setting) for setting in self.settings], self.tasks)

    def best_member(self) -> Setting | None:
        """Returns the member with the highest mean score alone."""
        members = [each for each in self.settings if each.alone is not None and each.samples == 1]
        return max(members, key=self.mean) if members else None

    def cost(self, setting: Setting) -> Cost:
        """Returns the mean cost of the answers of a setting."""
        return cost_of(self._answers[setting.label])


def cost_of(answers: Sequence[Answer]) -> Cost:
    """Returns the mean cost of answers."""
    steps = sum(answer.steps for answer in answers)
    forwards: dict[str, float] = {}
    tokens: dict[str, float] = {}
    for answer in answers:
        for name, work in answer.members.items():
            forwards[name] = forwards.get(name, 0.0) + work.forwards / len(answers)
            tokens[name] = tokens.get(name, 0.0) + work.tokens / len(answers)
    return Cost(
        steps / len(answers),
        sum(answer.ensembled for answer in answers) / steps if steps else 0.0,
        sum(answer.evaluations for answer in answers) / len(answers),
        {name: count for name, count in forwards.items() if count},
        tokens,
        sum(answer.seconds for answer in answers) / len(answers),
    )


def tables(
    results: Results, settings: Sequence[Setting], keys: Collection[tuple[str, str]] | None = None
) -> list[Table]:
    """Returns a table for each task, and one of all tasks together if there are several.

    Args:
        results: The answers.
        settings: The settings.
        keys: Only questions with these tasks and ids. Default: all in the results.

    Raises:
        EvaluationError: No question was answered with all settings.
    """
    answered = {task for _, task, id_ in results.answers if keys is None or (task, id_) in keys}
    names = [task for task in results.header.metrics if task in answered]
    made = [_table(results, Scores(results, settings, [task], keys=keys), task) for task in names]
    if len(made) > 1:
        made.append(_table(results, Scores(results, settings, keys=keys), POOLED))
    return made


def _table(results: Results, scores: Scores, task: str) -> Table:
    metrics = sorted({results.header.metrics[each][0] for each in set(scores.tasks)})
    best = scores.best_member()
    rows = tuple(_row(scores, setting, best) for setting in scores.settings)
    return Table(task, ", ".join(metrics), len(scores.keys), best.label if best else None, rows)


def _row(scores: Scores, setting: Setting, best: Setting | None) -> Row:
    answers = scores.answers(setting)
    others = list(answers[0].scores)[1:] if len({tuple(answer.scores) for answer in answers}) == 1 else []
    return Row(
        setting,
        scores.interval(setting),
        {name: sum(answer.scores[name] for answer in answers) / len(answers) for name in others},
        None if best is None or setting == best else scores.compare(setting, best),
        scores.cost(setting),
        sum(answer.error is not None for answer in answers),
    )
