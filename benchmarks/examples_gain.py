"""What the ensemble gains against its best member in the examples on real models (`examples/real`).

Weights and threshold are chosen on one half of the tasks and reported on the other. Run by ``python -m
benchmarks.examples_gain rag_chroma_langchain --models A B C --data SQUAD.json --limit 120 --out results.jsonl``;
docs/real-examples.md has the outcome. A run with the same ``--out`` continues where the last one ended. Seconds are
those of one task while others run; tasks run at once, so that the engine batches them.
"""

from __future__ import annotations

import importlib
import json
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import fmean
from typing import Any

from gac_core.evaluation.questions import half_of
from gac_core.evaluation.settings import Setting, alone, every_step, parse_weights, thresholded
from gac_core.evaluation.statistics import compare, mean_interval

EXAMPLES = Path(__file__).parent.parent / "examples" / "real"
sys.path.insert(0, str(EXAMPLES))
common = importlib.import_module("common")

WEIGHTS = ("1:4:2", "0:2:1")
Row = Mapping[str, Any]


class Results:
    """Solved tasks by label of the setting and question, kept in a file of JSON lines.

    Args:
        path: The file; read if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        self.rows: dict[tuple[str, str], Row] = {
            (row["setting"], row["question"]): row for row in map(json.loads, lines)
        }

    def add(self, row: Row) -> None:
        """Keeps a solved task."""
        with self._lock:
            self.rows[row["setting"], row["question"]] = row
            with self._path.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def column(self, setting: Setting, tasks: Sequence[Any], key: str) -> list[float]:
        """Returns one value of each task's row."""
        return [self.rows[setting.label, task.question][key] for task in tasks]


def solve_all(example: Any, settings: Sequence[Setting], tasks: Sequence[Any], results: Results, at_once: int) -> None:
    """Solves tasks with all settings; the settings of one task follow each other, so that prompts are read once."""
    keys = ("weights", "gate", "threshold")
    models = [example.model(**{key: setting.overrides()[key] for key in keys}) for setting in settings]

    def solve(task: Any) -> None:
        for setting, model in zip(settings, models, strict=True):
            if (setting.label, task.question) in results.rows:
                continue
            began = time.perf_counter()
            solved = example.solve(model, task)
            results.add(
                {
                    "setting": setting.label,
                    "question": task.question,
                    "score": solved.score,
                    "seconds": time.perf_counter() - began,
                    "steps": sum(call["steps"] for call in solved.calls),
                    "ensembled": sum(call["steps_ensembled"] for call in solved.calls),
                    "answer": solved.answer,
                    "expected": task.answers[0],
                    "shown": list(solved.shown),
                }
            )
        print(f"{len(results.rows)} solved", flush=True)

    with ThreadPoolExecutor(at_once) as pool:
        list(pool.map(solve, tasks))


def table(results: Results, settings: Sequence[Setting], tasks: Sequence[Any], other: Setting) -> str:
    """Returns a table in Markdown with the paired differences to one of the settings, in points."""
    scores = {setting.label: results.column(setting, tasks, "score") for setting in settings}
    lines = [
        f"| {len(tasks)} tasks | score | against {other.label} | steps ensembled | seconds |",
        "|---|---|---|---|---|",
    ]
    for setting in settings:
        score = mean_interval(scores[setting.label])
        gained = compare(scores[setting.label], scores[other.label]).difference
        against = f"{100 * gained.value:+.1f} ({100 * gained.low:+.1f} to {100 * gained.high:+.1f})"
        steps, ensembled = (sum(results.column(setting, tasks, key)) for key in ("steps", "ensembled"))
        lines.append(
            f"| {setting.label} | {100 * score.value:.1f} ({100 * score.low:.1f} to {100 * score.high:.1f}) | "
            f"{'' if setting == other else against} | {'' if setting.alone else f'{ensembled / max(1, steps):.0%}'} | "
            f"{fmean(results.column(setting, tasks, 'seconds')):.1f} |"
        )
    return "\n".join(lines)


def chosen(results: Results, settings: Sequence[Setting], tasks: Sequence[Any]) -> Setting:
    """Returns the ensemble with the highest score; of several, the one that ensembles the fewest steps."""

    def worth(setting: Setting) -> tuple[float, float]:
        return fmean(results.column(setting, tasks, "score")), -sum(results.column(setting, tasks, "ensembled"))

    return max(settings, key=worth)


def main() -> None:
    """Solves the tasks and prints the tables of both halves."""
    parser = common.parser(__doc__, weights=(0, 2, 1), threshold=0.7)
    parser.add_argument("example", help="name of a module in examples/real")
    parser.add_argument("--out", type=Path, required=True, help="results file; continued if it exists")
    parser.add_argument(
        "--choose",
        type=int,
        default=None,
        help="tasks to choose on (default: all of their half; 0: take --weights and --threshold, report all tasks)",
    )
    parser.add_argument("--at-once", type=int, default=4, help="tasks that run at once")
    args = parser.parse_args()
    # Throughput matters, not the delay of single answers: prompts are read whole, while other tasks wait.
    with common.load(args, prefill_seconds=60.0, cache_gib=1) as ensemble:
        names, gate = ensemble.names, args.gate or ensemble.gate
        example = importlib.import_module(args.example).build(args, ensemble)
        tasks = example.tasks[: args.limit]
        results = Results(args.out)
        members = [alone(name) for name in names]
        best = thresholded(names, gate, args.threshold, common.weights_of(args))
        if args.choose != 0:
            choose = [task for task in tasks if half_of(args.example, task.question) == "choose"][: args.choose]
            tasks = [task for task in tasks if half_of(args.example, task.question) == "report"]
            weights = [parse_weights(each, names) for each in WEIGHTS]
            settings = [every_step(names, each) for each in weights]
            settings += [thresholded(names, gate, args.threshold, each) for each in weights]
            solve_all(example, settings, choose, results, args.at_once)
            print(table(results, settings, choose, settings[0]))
            best = chosen(results, settings, choose)
            print("chosen:", best.label)
        solve_all(example, [*members, best], tasks, results, args.at_once)
        best_member = max(members, key=lambda each: fmean(results.column(each, tasks, "score")))
        print(table(results, [*members, best], tasks, best_member))


if __name__ == "__main__":
    main()
