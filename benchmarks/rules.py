"""Accuracy of combination rules, automatic weights and gate rules on three real models and six benchmarks.

Run by ``python -m benchmarks.tasks DATASETS DATA`` and then ``python -m benchmarks.rules --data DATA --out
results.jsonl``; docs/rules.md has the outcome. A run with the same ``--out`` continues where the last one ended. All
questions are of the half that `benchmarks.trio` chooses on.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.real_tables import print_tables
from benchmarks.trio import NAMES, REAL, TASKS, progress
from gac_core import Ensemble
from gac_core.evaluation.header import header_of
from gac_core.evaluation.metrics import metric_named
from gac_core.evaluation.questions import read_questions
from gac_core.evaluation.results import Results
from gac_core.evaluation.run import run
from gac_core.evaluation.settings import Setting, alone, every_step, thresholded
from gac_core.evaluation.task import Task, make_task

LIMITS = {"squad": 32, "triviaqa": 48, "nq": 24, "mmlu": 32, "bbh": 32}
COMBINERS = ("arithmetic", "geometric", "power:0.5", "power:2", "harmonic", "min", "max", "core", "safe")
# Rules that are measured with all three members, too.
ALL_THREE = ("arithmetic", "geometric", "core", "safe")
PAIR, EQUAL, HEAVY = (0.0, 1.0, 1.0), (1.0, 1.0, 1.0), (0.0, 2.0, 1.0)
GATE = "gemma3"
GATES = (("confidence", 0.7), ("margin", 0.5), ("entropy", 0.4), ("consensus", 1.0))


def settings() -> list[Setting]:
    """Returns the settings: members alone, rules on two weightings, automatic weights, gates."""
    rules = [every_step(NAMES, PAIR, rule) for rule in COMBINERS]
    rules += [every_step(NAMES, EQUAL, rule) for rule in ALL_THREE]
    automatic = Setting("every step, weights by perplexity", weights="perplexity")
    gates = [thresholded(NAMES, GATE, value, HEAVY, gate_rule=rule) for rule, value in GATES]
    return [*(alone(name) for name in NAMES), *rules, automatic, every_step(NAMES, HEAVY), *gates]


def main() -> None:
    """Answers and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the folder that benchmarks.tasks wrote")
    parser.add_argument("--out", type=Path, required=True, help="results file; continued if it exists")
    args = parser.parse_args()
    sets = [read_questions(args.data / f"{name}.jsonl") for name in LIMITS]
    tasks: Sequence[Task] = [
        make_task(each, TASKS[each.name][1], [metric_named(TASKS[each.name][2][0])]) for each in sets
    ]
    tasks = [replace(each, questions=each.questions.limited(LIMITS[each.name], "choose")) for each in tasks]
    models = [str(REAL / name) for name in NAMES]
    with Ensemble.load(models, dtype="bfloat16", cache_gib=1, drafts=()) as ensemble:
        results = Results(header_of(ensemble.config, tasks), args.out)
        run(ensemble, tasks, settings(), results, progress)
    print_tables(results, settings(), NAMES)


if __name__ == "__main__":
    main()
