"""Whether an ensemble of three real models beats its best member, over six benchmarks.

Weights and threshold are chosen on one half of the questions and reported on the other.
Run by ``python -m benchmarks.tasks DATASETS DATA`` and then ``python -m benchmarks.trio --data DATA --out
results.jsonl``; docs/real-models.md has the outcome. A run with the same ``--out`` continues where the last one ended.
The results file has the format of `gac eval`.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.real_tables import print_tables
from gac_core import Ensemble
from gac_core.evaluation.header import header_of
from gac_core.evaluation.metrics import metric_named
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import Half, QuestionSet, read_questions
from gac_core.evaluation.results import Results
from gac_core.evaluation.run import run
from gac_core.evaluation.settings import Setting, alone, every_step, parse_weights, thresholded
from gac_core.evaluation.summary import Scores
from gac_core.evaluation.task import Task, make_task

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


def keys_of(tasks: Sequence[Task]) -> set[tuple[str, str]]:
    """Returns task and id of all questions."""
    return {question.key for task in tasks for question in task.questions.questions}


def chosen_threshold(scores: Scores, gated: Sequence[Setting], goal: Setting) -> Setting:
    """Returns the cheapest threshold whose mean is at least that of every step; without one, that of the highest mean.

    Args:
        scores: Of all of them.
        gated: Thresholds.
        goal: Every step.
    """
    good = [each for each in gated if scores.mean(each) >= scores.mean(goal)]
    return min(good, key=lambda each: scores.cost(each).evaluations) if good else max(gated, key=scores.mean)


def main() -> None:
    """Answers the questions and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that benchmarks.tasks wrote")
    parser.add_argument("--out", type=Path, required=True, help="results file; continued if it exists")
    args = parser.parse_args()
    sets = [read_questions(args.data / f"{name}.jsonl") for name in TASKS]
    choose, report = make_tasks(sets, "choose"), make_tasks(sets, "report")
    with Ensemble.load(
        [str(REAL / name) for name in NAMES], dtype="bfloat16", max_batch_size=16, cache_gib=1, drafts=()
    ) as ensemble:
        results = Results(header_of(ensemble.config, report), args.out)
        answer(ensemble, choose, report, results)


def answer(ensemble: Ensemble, choose: Sequence[Task], report: Sequence[Task], results: Results) -> None:
    """Chooses weights, then a threshold, on one half; answers the other half with them; prints both."""
    weighted = [every_step(NAMES, parse_weights(weights, NAMES)) for weights in WEIGHTS]
    run(ensemble, choose, [*ALONE, *weighted], results, progress)
    scores = Scores(results, [*ALONE, *weighted], keys=keys_of(choose))
    chosen, gate = max(weighted, key=scores.mean), max(ALONE, key=scores.mean)
    assert isinstance(chosen.weights, Mapping)
    gated = [thresholded(NAMES, gate.label, value, [*chosen.weights.values()]) for value in THRESHOLDS]
    run(ensemble, choose, gated, results, progress)
    scores = Scores(results, [chosen, *gated], keys=keys_of(choose))
    threshold = chosen_threshold(scores, gated, chosen)
    print_tables(results, [*ALONE, *weighted, *gated], NAMES, keys_of(choose))
    print(f"chosen: {chosen.label}; {threshold.label}", flush=True)
    reported = [*ALONE, chosen, threshold]
    run(ensemble, report, reported, results, progress)
    print_tables(results, reported, NAMES, keys_of(report))


def progress(setting: Setting, count: int) -> None:
    """Prints a line for each round of each setting."""
    print(f"{setting.label}: {count}", flush=True)


if __name__ == "__main__":
    main()
