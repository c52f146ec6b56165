"""Search for good settings: weights and rules at every step first, then gates and thresholds for the best of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import product
from math import gcd
from typing import Any

from gac_core.config import EnsembleConfig
from gac_core.ensemble import Ensemble
from gac_core.errors import quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.recommend import Recommendation, choose, recommend
from gac_core.evaluation.results import Results
from gac_core.evaluation.run import Progress, Stage, check_settings, run
from gac_core.evaluation.settings import Setting, alone, every_step, thresholded
from gac_core.evaluation.statistics import Interval
from gac_core.evaluation.summary import Cost, Scores
from gac_core.evaluation.task import Task, count_questions

FIRST_RUNG = 24
"""Questions of each task in the first round of a search."""

SURVIVORS = 2
"""Settings of every step for which thresholds are tried."""


@dataclass(frozen=True)
class Grid:
    """The values to combine.

    Attributes:
        weights: One tuple each, one weight per member.
        combines: Rules, as `SamplingParams.combine`; None: the ensemble's.
        gates: Names of members.
        gate_rules: As `SamplingParams.gate_rule`; None: the ensemble's.
        thresholds: Each above 0.
    """

    weights: tuple[tuple[float, ...], ...]
    combines: tuple[str | None, ...]
    gates: tuple[str, ...]
    gate_rules: tuple[str | None, ...]
    thresholds: tuple[float, ...]

    def every_step(self, names: Sequence[str]) -> list[Setting]:
        """Returns the settings that ensemble every step."""
        return [every_step(names, weights, combine) for weights, combine in product(self.weights, self.combines)]

    def thresholded(self, names: Sequence[str], base: Setting) -> list[Setting]:
        """Returns the thresholded settings with the weights and the rule of a setting, for gates that take part."""
        weights = base.weights if isinstance(base.weights, Mapping) else {}
        return [
            thresholded(names, gate, threshold, [*weights.values()], base.combine, rule)
            for gate, rule, threshold in product(self.gates, self.gate_rules, self.thresholds)
            if weights.get(gate, 0) > 0
        ]

    def possible(self, names: Sequence[str]) -> list[Setting]:
        """Returns every setting that may be run, for checks before anything is computed."""
        bases = self.every_step(names)
        gated = [each for base in bases for each in self.thresholded(names, base)]
        # Each gate by itself too: thresholded settings leave out gates of weight 0.
        return [*map(alone, names), *map(alone, self.gates), *bases, *gated]


def default_weights(count: int) -> tuple[tuple[float, ...], ...]:
    """Returns weights to try for a number of members.

    Up to three members: 0, 1 and 2 for each, without multiples of one another, where two take part at least. With more:
    equal weights, each member doubled, and each left out.
    """
    if count <= 3:
        found = (each for each in product((0, 1, 2), repeat=count) if sum(weight > 0 for weight in each) > 1)
        return tuple(tuple(map(float, each)) for each in found if gcd(*each) == 1)
    changed = [
        tuple(value if place == member else 1.0 for place in range(count))
        for value in (2.0, 0.0)
        for member in range(count)
    ]
    return ((1.0,) * count, *changed)


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        setting: The setting.
        questions: Questions it has answered, of the half on which settings are chosen.
        score: Mean score on them.
        cost: Mean cost of an answer.
        dropped: Whether it was given up before it had answered all questions of this half.
    """

    setting: Setting
    questions: int
    score: Interval
    cost: Cost
    dropped: bool


@dataclass(frozen=True)
class Sweep:
    """The outcome of a search.

    Attributes:
        trials: All settings that were tried, members alone included.
        front: Those of which no other one has a higher score at the same cost or less, cheapest first.
        best: The setting that was chosen.
        recommendation: Compares it with the best member on the other half of the questions.
    """

    trials: tuple[Trial, ...]
    front: tuple[Trial, ...]
    best: Setting
    recommendation: Recommendation


@dataclass
class _Search:
    """The state of a search.

    Attributes:
        ensemble: Answers.
        tasks: The questions of the half on which settings are chosen.
        results: Receives the answers.
        stage: Called at the beginning of each round, with its description and number of answers.
        progress: As in `gac_core.evaluation.run.run`.
        asked: Number of questions of each task that each setting has answered, in the order in which they were tried.
    """

    ensemble: Ensemble
    tasks: Sequence[Task]
    results: Results
    stage: Stage | None
    progress: Progress | None
    asked: dict[Setting, int] = field(default_factory=dict)

    @property
    def longest(self) -> int:
        """Number of questions of the longest task."""
        return max(len(task.questions.questions) for task in self.tasks)

    def answer(self, what: str, settings: Sequence[Setting], limit: int) -> Scores:
        """Answers the first questions of each task with all settings."""
        part = [replace(task, questions=task.questions.limited(limit)) for task in self.tasks]
        if self.stage is not None:
            self.stage(what, len(settings) * count_questions(part))
        run(self.ensemble, part, settings, self.results, self.progress)
        self.asked.update(dict.fromkeys(settings, limit))
        keys = {question.key for task in part for question in task.questions.questions}
        return Scores(self.results, settings, keys=keys)

    def rungs(self) -> Iterator[int]:
        """Yields growing numbers of questions of each task; the last one takes all."""
        count = FIRST_RUNG
        while count < self.longest:
            yield count
            count *= 2
        yield self.longest

    def narrow(self, what: str, settings: Sequence[Setting], halve: bool) -> list[Setting]:
        """Answers growing numbers of questions and drops settings on the way; returns those that are left.

        A setting is dropped if the paired interval of its difference to the best one lies below 0; and, with ``halve``,
        if it is not among the better half (successive halving; at least `SURVIVORS` stay).
        """
        left = list(settings)
        for limit in self.rungs():
            scores = self.answer(f"{what}: {len(left)} settings", left, limit)
            best = max(left, key=scores.mean)
            left = [each for each in left if each == best or scores.compare(each, best).difference.high >= 0]
            if halve:
                count = max(SURVIVORS, (len(left) + 1) // 2)
                left = sorted(left, key=scores.mean, reverse=True)[:count]
        return left


def sweep(
    ensemble: Ensemble,
    tasks: Sequence[Task],
    grid: Grid,
    results: Results,
    every: bool = False,
    stage: Stage | None = None,
    progress: Progress | None = None,
) -> Sweep:
    """Searches for the best setting on one half of the questions, and compares it with the best member on the other.

    Weights and rules are tried at every step, on growing numbers of questions, and the worse half is dropped each time
    (successive halving, Jamieson and Talwalkar 2016), as is what is shown to be worse than the best. Gates and
    thresholds are tried for the two best that are left; these are dropped only where they are shown to be worse, since
    cheaper ones may score a little less.

    Args:
        ensemble: Answers.
        tasks: The questions, of both halves.
        grid: The values to combine.
        results: Receives the answers; a search on results that it began before continues.
        every: Whether all combinations answer all questions of the first half. Default False.
        stage: Called at the beginning of each round, with its description and number of answers.
        progress: As in `gac_core.evaluation.run.run`.

    Raises:
        EvaluationError: A setting cannot be used, a question could not be answered, or a half has no questions.
    """
    names = ensemble.names
    check_several(names)
    chosen_on, reported_on = _half(tasks, "choose"), _half(tasks, "report")
    members = [alone(name) for name in names]
    bases = grid.every_step(names)
    all_gated = [each for base in bases for each in grid.thresholded(names, base)]
    check_settings(ensemble, grid.possible(names), tasks)
    search = _Search(ensemble, chosen_on, results, stage, progress)
    search.answer("members", members, search.longest)
    if every:
        left = bases + all_gated
        search.answer(f"grid: {len(left)} settings", left, search.longest)
    else:
        survivors = search.narrow("every step", bases, halve=True)[:SURVIVORS]
        gated = [each for base in survivors for each in grid.thresholded(names, base)]
        left = survivors + (search.narrow("thresholds", gated, halve=False) if gated else [])
    best = choose(Scores(results, left, half="choose"), left)
    if stage is not None:
        stage("other half", (len(members) + 1) * count_questions(reported_on))
    run(ensemble, reported_on, [*members, best], results, progress)
    trials = _trials(search)
    advice = recommend(results, [*members, best], chosen=best, tried=len(trials) - len(members))
    return Sweep(trials, front(trials), best, advice)


def check_several(names: Sequence[str]) -> None:
    """Raises an `EvaluationError` if there are fewer than two members."""
    if len(names) < 2:
        raise EvaluationError(
            f"{quote(names[0])} is the only member, so that there is nothing to combine; give two models or more"
        )


def _half(tasks: Sequence[Task], half: str) -> list[Task]:
    parts = [replace(task, questions=task.questions.limited(half=half)) for task in tasks]  # type: ignore[arg-type]
    kept = [task for task in parts if task.questions.questions]
    if not kept:
        raise EvaluationError(
            "the questions are too few to be divided into halves, one to choose settings on and one to report; add some"
        )
    return kept


def _trials(search: _Search) -> tuple[Trial, ...]:
    """Returns the settings that were tried, in their order, each with the questions that it has answered."""
    found = {}
    for limit in set(search.asked.values()):
        group = [setting for setting, asked in search.asked.items() if asked == limit]
        scores = Scores(search.results, group, half="choose")
        for setting in group:
            cells = (len(scores.keys), scores.interval(setting), scores.cost(setting))
            found[setting] = Trial(setting, *cells, dropped=limit < search.longest)
    return tuple(found[setting] for setting in search.asked)


def front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Returns the trials that are not dropped and of which no other has a higher score at the same cost or less."""
    kept: list[Trial] = []
    for trial in sorted(trials, key=lambda each: (each.cost.evaluations, -each.score.value)):
        if not trial.dropped and (not kept or trial.score.value > kept[-1].score.value):
            kept.append(trial)
    return tuple(kept)


def configured_as(config: EnsembleConfig, setting: Setting) -> EnsembleConfig:
    """Returns the configuration of an ensemble that answers as a setting does, without members of the weight 0."""
    weights = setting.weights if isinstance(setting.weights, Mapping) else {}
    members = [
        replace(member, weight=weights.get(member.called, member.weight))
        for member in config.members
        if weights.get(member.called, member.weight) > 0
    ]
    # Members have the temperatures of a calibration already.
    sources: dict[str, Any] = {} if setting.weights is None else {"weights": None, "calibration": None}
    return replace(
        config,
        **sources,
        members=tuple(members),
        min_members=min(config.min_members, len(members)),
        gate=setting.gate,
        threshold=setting.threshold,
        combine=setting.combine or config.combine,
        gate_rule=setting.gate_rule or config.gate_rule,
    )
