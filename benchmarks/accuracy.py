"""Exact answers on held-out questions: each member alone, every step ensembled, and thresholded at several values.

Run by ``python -m benchmarks.accuracy``. All configurations answer the same questions; intervals are 95% percentile
bootstrap intervals over questions, and "gain" is relative to the best member alone.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

from gac_core import Ensemble, RequestOutput
from gac_core.evaluation.statistics import compare, mean_interval

MODELS = Path(__file__).parent.parent / "examples" / "models"
sys.path.insert(0, str(MODELS))
from handbook import answers_match, held_out, render_messages  # noqa: E402

NAMES = ("ash", "birch", "cedar")


@dataclass
class Result:
    """Results of one configuration.

    Attributes:
        hits: Per question, whether the answer was right.
        steps: Total number of steps.
        ensembled: Number of steps at which all members ran.
        seconds: Wall time.
    """

    hits: list[bool]
    steps: int
    ensembled: int
    seconds: float

    @property
    def accuracy(self) -> float:
        """Share of right answers."""
        return sum(self.hits) / len(self.hits)


def measure(ensemble: Ensemble, count: int, seed: int, **asked: object) -> Result:
    """Answers the questions with one configuration."""
    examples = held_out(count, seed)
    began = time.perf_counter()
    outputs: list[RequestOutput] = ensemble.generate_batch(
        [render_messages(example) for example in examples], max_tokens=64, **asked
    )
    seconds = time.perf_counter() - began
    hits = [answers_match(o.text, example.answer) for o, example in zip(outputs, examples, strict=True)]
    steps = sum(output.stats.steps for output in outputs)
    return Result(hits, steps, sum(output.stats.steps_ensembled for output in outputs), seconds)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.3, 0.5, 0.7, 0.9])
    parser.add_argument("--gate", default=None, help="gate of the thresholded rows; default the best member alone")
    parser.add_argument("--commit", choices=("canonical", "context-free"), default="canonical")
    args = parser.parse_args()
    with Ensemble.load([str(MODELS / name) for name in NAMES], dtype="float32", commit=args.commit) as ensemble:
        rows = {
            f"{name} alone": measure(ensemble, args.questions, args.seed, gate=name, threshold=0.0) for name in NAMES
        }
        best_name, best = max(rows.items(), key=lambda item: item[1].accuracy)
        gate = args.gate or best_name.split()[0]
        rows["every step"] = measure(ensemble, args.questions, args.seed, threshold=None)
        for threshold in args.thresholds:
            rows[f"threshold {threshold} (gate {gate})"] = measure(
                ensemble, args.questions, args.seed, gate=gate, threshold=threshold
            )
    table = Table("answered by", "exact", "95% interval", "against best alone", "95% interval", "steps ensembled", "s")
    for name, row in rows.items():
        own = mean_interval([float(hit) for hit in row.hits])
        against = compare([float(hit) for hit in row.hits], [float(hit) for hit in best.hits]).difference
        alone = name.endswith("alone")
        table.add_row(
            name,
            f"{row.accuracy:.1%}",
            f"{own.low:.1%} to {own.high:.1%}",
            "" if alone else f"{row.accuracy / best.accuracy - 1:+.1%}",
            "" if alone else f"{against.low:+.1%} to {against.high:+.1%} points",
            "" if alone else f"{row.ensembled / row.steps:.1%}",
            f"{row.seconds:.1f}",
        )
    console = Console(width=130)
    console.print(f"{args.questions} held-out questions, seed {args.seed}; best alone: {best_name}")
    console.print(table)


if __name__ == "__main__":
    main()
