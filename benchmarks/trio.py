"""Whether an ensemble of three real models beats its best member, over six benchmarks.

Weights and threshold are chosen on one half of the questions and reported on the other.
Run by ``python -m benchmarks.tasks DATASETS DATA`` and then ``python -m benchmarks.trio --data DATA --out
results.jsonl``; docs/real-models.md has the outcome. A run with the same ``--out`` continues where the last one ended.
The results file is one of `gac eval`; ``--table`` prints the tables of what it has so far.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from gac_core import Ensemble
from gac_core.evaluation.metrics import metric_named
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import Half, QuestionSet, read_questions
from gac_core.evaluation.results import Answer, Results, header_of
from gac_core.evaluation.run import Task, make_task, run
from gac_core.evaluation.settings import Setting, alone, every_step, parse_weights, thresholded
from gac_core.evaluation.statistics import compare, mean_interval

REAL = Path(os.environ.get("GAC_REAL_MODELS") or Path.home() / ".cache" / "gac-real-models")
NAMES = ("smollm2", "gemma3", "qwen")
# Questions of both halves together, examples and metrics; the first metric counts.
TASKS: dict[str, tuple[int, PromptForm, tuple[str, ...]]] = {
    "squad": (200, PromptForm("plain", max_tokens=24), ("f1", "exact", "contains")),
    "triviaqa": (280, PromptForm("plain", max_tokens=16), ("exact", "f1", "contains")),
    "nq": (160, PromptForm("plain", max_tokens=16), ("exact", "f1", "contains")),
    "mmlu": (160, PromptForm("plain", shots=2), ("choice",)),
    "bbh": (160, PromptForm("plain", shots=3, max_tokens=12), ("exact", "f1")),
    "gsm8k": (40, PromptForm("plain", max_tokens=200, solutions=True), ("number",)),
}
WEIGHTS = ("1:1:1", "0:1:1", "0:3:2", "0:2:1")
# A solution takes as long as fifty answers of the other tasks, so that these have no part in the choice.
REPORTED_ONLY = ("gsm8k",)
THRESHOLDS = (0.7, 0.9)
ALONE = tuple(alone(name) for name in NAMES)
Scores = dict[str, dict[tuple[str, str], float]]


def make_tasks(sets: Sequence[QuestionSet], half: Half) -> list[Task]:
    """Returns the tasks with the questions of one half."""
    tasks = []
    for each in sets:
        if half == "choose" and each.name in REPORTED_ONLY:
            continue
        limit, form, metrics = TASKS[each.name]
        task = make_task(each, form, [metric_named(name) for name in metrics])
        tasks.append(replace(task, questions=task.questions.limited(limit // 2, half)))
    return tasks


def scores_of(results: Results, half: Sequence[Task]) -> Scores:
    """Returns the scores of the settings that have answered all questions of a half, by setting, task and id."""
    keys = [(task.name, question.id) for task in half for question in task.questions.questions]
    scores: Scores = {}
    for label in results.settings:
        own = {(each.task, each.id): each.score for each in results.of(label)}
        if all(key in own for key in keys):
            scores[label] = {key: own[key] for key in keys}
    return scores


def best(scores: Scores, settings: Sequence[Setting]) -> Setting:
    """Returns the setting with the highest mean over all questions."""
    return max(settings, key=lambda each: float(np.mean(list(scores[each.label].values()))))


def cheapest(results: Results, half: Sequence[Task], settings: Sequence[Setting], goal: Setting) -> Setting:
    """Returns the threshold with the fewest ensembled steps whose mean is at least that of every step.

    Without one, the threshold with the highest mean.
    """
    scores = scores_of(results, half)
    good = [each for each in settings if sum(scores[each.label].values()) >= sum(scores[goal.label].values())]
    return min(good, key=lambda each: share(results.of(each.label))) if good else best(scores, settings)


def share(answers: Sequence[Answer]) -> float:
    """Returns the share of steps that were ensembled."""
    return sum(each.ensembled for each in answers) / sum(each.steps for each in answers)


def tables(results: Results, half: Sequence[Task], title: str, console: Console) -> None:
    """Prints the mean score of each setting, by task and over all, and the difference to the best member."""
    scores = scores_of(results, half)
    members = [each for each in ALONE if each.label in scores]
    if not members:
        return
    champion = best(scores, members).label
    keys = list(scores[champion])
    names = list(dict.fromkeys(task for task, _ in keys))
    table = Table("setting", *names, "pooled", f"against {champion}", "relative", "ensembled")
    table.title = f"{title}: {len(keys)} questions"
    theirs = [scores[champion][key] for key in keys]
    groups = [task for task, _ in keys]
    asked = set(keys)
    for label, own in scores.items():
        ours = [own[key] for key in keys]
        by_task = [f"{100 * np.mean([own[key] for key in keys if key[0] == name]):.1f}" for name in names]
        pooled = mean_interval(ours, groups)
        found = compare(ours, theirs, groups)
        answers = [each for each in results.of(label) if (each.task, each.id) in asked]
        table.add_row(
            label,
            *by_task,
            percent(pooled),
            percent(found.difference),
            percent(found.relative),
            f"{share(answers):.1%}",
        )
    console.print(table)


def percent(interval: object) -> str:
    """Returns an interval as text."""
    if interval is None:
        return ""
    value, low, high = (100 * getattr(interval, name) for name in ("value", "low", "high"))
    return f"{value:+.1f} ({low:+.1f} to {high:+.1f})"


def main() -> None:
    """Answers the questions and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that benchmarks.tasks wrote")
    parser.add_argument("--out", type=Path, required=True, help="results file; continued if it exists")
    parser.add_argument("--table", action="store_true", help="only print the tables")
    args = parser.parse_args()
    sets = [read_questions(args.data / f"{name}.jsonl") for name in TASKS]
    choose, report = make_tasks(sets, "choose"), make_tasks(sets, "report")
    with Ensemble.load(
        [str(REAL / name) for name in NAMES], dtype="bfloat16", max_batch_size=16, cache_gib=1, drafts=()
    ) as ensemble:
        header = header_of(
            ensemble.config, sets, {name: TASKS[name][1] for name in TASKS}, {name: TASKS[name][2] for name in TASKS}
        )
        results = Results(header, args.out)
        if not args.table:
            answer(ensemble, choose, report, results)
    console = Console(width=200)
    tables(results, choose, "choose", console)
    tables(results, report, "report", console)


def answer(ensemble: Ensemble, choose: Sequence[Task], report: Sequence[Task], results: Results) -> None:
    """Chooses weights, then a threshold, on one half; answers the other half with them."""
    weighted = [every_step(NAMES, parse_weights(weights, NAMES)) for weights in WEIGHTS]
    run(ensemble, choose, [*ALONE, *weighted], results, progress)
    scores = scores_of(results, choose)
    chosen = best(scores, weighted)
    gate = best(scores, ALONE).label
    assert chosen.weights is not None
    weights = list(chosen.weights.values())
    gated = [thresholded(NAMES, gate, value, weights) for value in THRESHOLDS]
    run(ensemble, choose, gated, results, progress)
    threshold = cheapest(results, choose, gated, chosen)
    print(f"chosen: {chosen.label}; {threshold.label}", flush=True)
    run(ensemble, report, [*ALONE, chosen, *gated, weighted[0]], results, progress)


def progress(setting: Setting, count: int) -> None:
    """Prints a line for each round of each setting."""
    print(f"{setting.label}: {count}", flush=True)


if __name__ == "__main__":
    main()
