"""Answers to the questions of `benchmarks.trio` with further settings, in a results file of `gac eval`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

from benchmarks.experiments.data import DATASETS, read_sets
from benchmarks.trio import NAMES, REAL, TASKS
from gac_core import Ensemble
from gac_core.evaluation.metrics import metric_named
from gac_core.evaluation.questions import QuestionSet
from gac_core.evaluation.results import Answer, Results, header_of, read_lines
from gac_core.evaluation.run import Task, make_task, run
from gac_core.evaluation.settings import Setting

# Questions per task: long prompts cost more.
COUNTS = {"squad": 60, "triviaqa": 160, "nq": 100, "mmlu": 160, "bbh": 60, "gsm8k": 0}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Adds the arguments of a command that reads a results file, or answers what it lacks."""
    parser.add_argument("results", type=Path, help="a results file of gac eval, or a new file")
    parser.add_argument("--run", action="store_true", help="answer the questions that the file lacks")
    parser.add_argument("--data", type=Path, default=DATASETS, help="folder of the public benchmarks")
    parser.add_argument("--questions", type=float, default=1.0, help="multiplies the number of questions per task")


def grid_tasks(sets: Mapping[str, QuestionSet], factor: float) -> list[Task]:
    """Returns a random sample of questions of each task, in the form of `benchmarks.trio`."""
    tasks = []
    for name, (_, form, metrics) in TASKS.items():
        if count := round(factor * COUNTS[name]):
            tasks.append(make_task(sets[name].limited(count), form, [metric_named(metric) for metric in metrics]))
    return tasks


def answer_missing(args: argparse.Namespace, settings: Sequence[Setting], cache_gib: float = 1.0) -> None:
    """Answers the questions with settings for which the results file lacks answers."""
    sets = read_sets(args.data)
    models = [str(REAL / name) for name in NAMES]
    with Ensemble.load(models, dtype="bfloat16", max_batch_size=16, cache_gib=cache_gib, drafts=()) as ensemble:
        forms = {name: TASKS[name][1] for name in TASKS}
        header = header_of(
            ensemble.config, [sets[name] for name in TASKS], forms, {name: TASKS[name][2] for name in TASKS}
        )
        run(ensemble, grid_tasks(sets, args.questions), settings, Results(header, args.results), _show)


def _show(setting: Setting, count: int) -> None:
    print(f"{count} questions: {setting.label}", flush=True)


def complete_answers(path: Path, settings: Sequence[Setting]) -> dict[str, list[Answer]]:
    """Returns the answers to the questions that all settings have answered, by label, in the same order.

    Args:
        path: A results file.
        settings: Settings; those that the file lacks altogether are left out.
    """
    _, known, answers = read_lines(path)
    labels = [setting.label for setting in settings if setting.label in known]
    keys = [{(task, id) for label, task, id in answers if label == each} for each in labels]
    shared = sorted(set.intersection(*keys)) if keys else []
    return {label: [answers[label, *key] for key in shared] for label in labels}
