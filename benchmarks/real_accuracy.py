"""Accuracy of ensembles of real models: each member alone, every step with several weights, and thresholds.

Run by ``python -m benchmarks.real_accuracy``; see docs/real-models.md. Questions, settings, results and intervals are
those of `gac eval`: rounds of 32 questions, one line per answer in ``--out``, and a run with the same file continues.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from benchmarks.real_tables import print_tables
from benchmarks.real_tasks import code, nq, squad
from gac_core import Ensemble, MemberConfig
from gac_core.evaluation.header import header_of
from gac_core.evaluation.results import Results
from gac_core.evaluation.run import run
from gac_core.evaluation.settings import Setting, alone, every_step, parse_weights, thresholded
from gac_core.evaluation.task import Task

REAL = Path(os.environ.get("GAC_REAL_MODELS") or Path.home() / ".cache" / "gac-real-models")
TASKS = ("squad-chat", "squad-shots", "nq", "code")
BATCH = 16


def load_task(task: str, data: Path | None, n: int, question: int) -> Task:
    """Returns the questions of a task."""
    if task == "code":
        return code(n)
    if data is None:
        raise SystemExit(f"{task} needs --data FILE")
    return nq(data, n) if task == "nq" else squad(data, task.removeprefix("squad-"), n, question)


def settings_of(
    names: Sequence[str], weights: Sequence[Sequence[float]], gate: str, thresholds: Sequence[float]
) -> list[Setting]:
    """Returns: each member alone; every step and the thresholds with the first weights; every step with the others."""
    best, *others = weights
    settings = [*map(alone, names), every_step(names, best)]
    settings += [thresholded(names, gate, threshold, best) for threshold in thresholds]
    return settings + [every_step(names, each) for each in others]


def main() -> None:
    """Answers the questions and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=TASKS)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per answer; continued if it exists")
    parser.add_argument("--data", type=Path, help="the data file of squad-chat, squad-shots or nq")
    parser.add_argument("--members", nargs="+", default=["smollm2", "qwen"], help=f"folders in {REAL}")
    parser.add_argument("--weights", nargs="+", help="such as 1:3 1:1; the first for thresholds")
    parser.add_argument("--gate", help="gate for the thresholds; default: the last member")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.7, 0.9, 0.5])
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--question", type=int, default=0, help="which question of each SQuAD passage; default 0")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--cache-gib", type=float, default=1.0, help="0: every setting computes its prompts, for comparable times"
    )
    parser.add_argument("--template", help="a Jinja chat template for all members")
    args = parser.parse_args()
    task = load_task(args.task, args.data, args.questions, args.question)
    names = args.members
    weights = [parse_weights(each, names) for each in args.weights or []] or [tuple(1.0 for _ in names)]
    settings = settings_of(names, weights, args.gate or names[-1], args.thresholds)
    members = [MemberConfig(str(REAL / name), name=name, chat_template=args.template) for name in names]
    how = {"max_batch_size": BATCH, "cache_gib": args.cache_gib, "drafts": ()}
    with Ensemble.load(members, dtype=args.dtype, **how) as ensemble:
        results = Results(header_of(ensemble.config, [task]), args.out)
        run(ensemble, [task], settings, results)
    print_tables(results, settings, names)


if __name__ == "__main__":
    main()
