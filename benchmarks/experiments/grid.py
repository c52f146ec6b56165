"""Answers to the questions of `benchmarks.trio` with further settings, in a results file of `gac eval`."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.experiments.data import DATASETS, read_sets
from benchmarks.trio import NAMES, REAL, TASKS, make_tasks
from gac_core import Ensemble
from gac_core.evaluation.header import header_of
from gac_core.evaluation.metrics import metric_named
from gac_core.evaluation.questions import QuestionSet
from gac_core.evaluation.results import Answer, Results, read_lines
from gac_core.evaluation.run import run
from gac_core.evaluation.settings import Setting
from gac_core.evaluation.task import Task, make_task

# Questions per task: long prompts cost more.
COUNTS = {"squad": 60, "triviaqa": 160, "nq": 100, "mmlu": 160, "bbh": 60, "gsm8k": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a command that reads a results file, or answers what it lacks."""
    parser.add_argument("results", type=Path, help="a results file of gac eval, or a new file")
    parser.add_argument("--run", action="store_true", help="answer the questions that the file lacks")
    parser.add_argument("--data", type=Path, default=DATASETS, help="folder of the public benchmarks")
    parser.add_argument("--least", type=int, default=1, help="leave out settings with fewer answers")
    parser.add_argument("--questions", type=float, default=1.0, help="multiplies the number of questions per task")


def grid_tasks(sets: Mapping[str, QuestionSet], factor: float) -> list[Task]:
    """Returns a random sample of questions of each task, in the form of `benchmarks.trio`."""
    tasks = []
    for name, (_, form, metrics) in TASKS.items():
        if count := round(factor * COUNTS[name]):
            # The sample is taken from the questions that are not examples.
            task = make_task(sets[name], form, [metric_named(metric) for metric in metrics])
            tasks.append(replace(task, questions=task.questions.limited(count)))
    return tasks


def answer_missing(
    path: Path, datasets: Path, factor: float, settings: Sequence[Setting], cache_gib: float = 1.0
) -> None:
    """Answers the questions with settings for which a results file lacks answers.

    Args:
        path: The results file.
        datasets: Folder of the public benchmarks.
        factor: Multiplies the number of questions per task.
        settings: The settings.
        cache_gib: As in `EnsembleConfig`; 0: every setting computes its prompts, for times that can be compared.
    """
    sets = read_sets(datasets)
    models = [str(REAL / name) for name in NAMES]
    with Ensemble.load(models, dtype="bfloat16", max_batch_size=16, cache_gib=cache_gib, drafts=()) as ensemble:
        tasks = grid_tasks(sets, factor)
        # The header has all tasks, so that files of `benchmarks.trio` can be continued.
        every = make_tasks([sets[name] for name in TASKS], "report")
        run(ensemble, tasks, settings, Results(header_of(ensemble.config, every), path), _show)


def _show(setting: Setting, count: int) -> None:
    print(f"{count} questions: {setting.label}", flush=True)


@dataclass(frozen=True)
class Answered:
    """The answers of one setting.

    Attributes:
        setting: The setting.
        answers: Its answers, by task and id.
    """

    setting: Setting
    answers: list[Answer]

    @property
    def mean(self) -> float:
        """Mean score."""
        return sum(self.scores) / len(self.answers)

    @property
    def scores(self) -> list[float]:
        """Score of each answer."""
        return [each.score for each in self.answers]

    def only(self, keep: Callable[[Answer], bool]) -> Answered:
        """Returns the setting with some of its answers."""
        return Answered(self.setting, [each for each in self.answers if keep(each)])


def read_answers(path: Path, wanted: Callable[[Setting], bool], least: int = 1) -> list[Answered]:
    """Returns the answers to the questions that all wanted settings have answered.

    Args:
        path: A results file.
        wanted: Whether a setting is of interest.
        least: Settings with fewer answers are left out.

    Raises:
        SystemExit: There is no such question.
    """
    _, settings, answers = read_lines(path)
    counts = Counter(label for label, _, _ in answers)
    kept = [each for each in settings.values() if wanted(each) and counts[each.label] >= least]
    keys = [{(task, id) for label, task, id in answers if label == each.label} for each in kept]
    shared = sorted(set.intersection(*keys)) if keys else []
    if not shared:
        raise SystemExit(f"{path}: no question was answered with all of the {len(kept)} settings that this needs")
    return [Answered(each, [answers[each.label, *key] for key in shared]) for each in kept]


def best_alone(answered: Iterable[Answered]) -> Answered:
    """Returns the member with the highest mean score alone."""
    return max((each for each in answered if each.setting.alone), key=lambda each: each.mean)
