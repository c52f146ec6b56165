"""Accuracy of ensembles of real models: each member alone, every step with several weights, and thresholds.

Run by ``python -m benchmarks.real_accuracy``; see docs/real-models.md. Questions are answered in rounds of 32: all
configurations finish a round before the next one begins, so that an interrupted run has the same questions for each.
Each answer is one line of ``--out``; a run with the same file continues where the last one ended. Intervals are
95% percentile bootstrap intervals over questions.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.accuracy import bootstrap
from benchmarks.real_tasks import Item, code, nq, score, squad
from gac_core import Ensemble, EnsembleConfig, MemberConfig, RequestOutput
from gac_core.model.member import Member

REAL = Path(os.environ.get("GAC_REAL_MODELS") or Path.home() / ".cache" / "gac-real-models")
TASKS = ("squad-chat", "squad-shots", "nq", "code")
BATCH = 16
# Questions per round: two batches, so that fewer steps run half empty.
ROUND = 32


@dataclass(frozen=True)
class Way:
    """One configuration.

    Attributes:
        label: Its name in results.
        weights: One per member.
        gate: The gate, or None where there is no threshold.
        threshold: None: every step; 0: the gate alone.
    """

    label: str
    weights: tuple[float, ...]
    gate: str | None = None
    threshold: float | None = None


class RealMembers:
    """Loaded models from which ensembles with different weights are made.

    The ensembles share the members, so only one of them may run at a time.

    Args:
        names: Folders under the folder of real models.
        dtype: For example ``"bfloat16"``.
        cache_gib: As in `EnsembleConfig`; prompts computed for one configuration are reused by the next.
        template: A Jinja chat template for members without one.
    """

    def __init__(
        self, names: Sequence[str], dtype: str = "bfloat16", cache_gib: float = 1.0, template: str | None = None
    ) -> None:
        self._configs = [MemberConfig(str(REAL / name), name=name, dtype=dtype) for name in names]
        self._members = []
        for config in self._configs:
            model = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(config.model)
            tokenizer.chat_template = tokenizer.chat_template or template
            self._members.append(Member.from_model(model, tokenizer, config.called, cache_bytes=int(cache_gib * 2**30)))

    def ensemble(self, weights: Sequence[float], **settings: Any) -> Ensemble:
        """Returns an ensemble of the members with these weights, without drafts."""
        configs = [
            MemberConfig(config.model, name=config.name, dtype=config.dtype, weight=weight)
            for config, weight in zip(self._configs, weights, strict=True)
        ]
        return Ensemble(self._members, EnsembleConfig(tuple(configs), drafts=(), max_batch_size=BATCH, **settings))


def answer(ensemble: Ensemble, items: Sequence[Item], **sampling: Any) -> list[RequestOutput]:
    """Answers the items as one batch; all must have the same stop strings and number of tokens."""
    (limits,) = {(item.stop, item.max_tokens) for item in items}
    asked = {"stop": limits[0], "max_tokens": limits[1], "drafts": False, **sampling}
    return ensemble.generate_batch([item.prompt for item in items], **asked)


def load_items(task: str, data: Path | None, n: int, question: int) -> list[Item]:
    """Returns the questions of a task."""
    if task == "code":
        return code(n)
    if data is None:
        raise SystemExit(f"{task} needs --data FILE")
    return nq(data, n) if task == "nq" else squad(data, task.removeprefix("squad-"), n, question)


def ways_of(
    names: Sequence[str], weights: Sequence[Sequence[float]], gate: str, thresholds: Sequence[float]
) -> list[Way]:
    """Returns: each member alone; every step and the thresholds with the first weights; every step with the others."""
    best, *others = [tuple(each) for each in weights]
    ways = [Way(f"{name} alone", best, name, 0.0) for name in names]
    ways.append(Way(f"every step {shown(best)}", best))
    ways += [Way(f"threshold {each} {shown(best)}, gate {gate}", best, gate, each) for each in thresholds]
    return ways + [Way(f"every step {shown(each)}", each) for each in others]


def shown(weights: Sequence[float]) -> str:
    """Returns weights in the format of the command line."""
    return ":".join(f"{weight:g}" for weight in weights)


def lines(out: Path) -> list[dict[str, Any]]:
    """Returns the results so far."""
    return [json.loads(line) for line in out.read_text(encoding="utf-8").splitlines()] if out.exists() else []


def measure(ensemble: Ensemble, way: Way, items: Sequence[Item], run: dict[str, Any], out: Path) -> None:
    """Answers the items with one configuration and appends a line for each."""
    began = time.perf_counter()
    outputs = answer(ensemble, items, threshold=way.threshold, gate=way.gate)
    seconds = (time.perf_counter() - began) / len(items)
    with out.open("a", encoding="utf-8") as file:
        for item, output in zip(items, outputs, strict=True):
            line = run | {
                "way": way.label,
                "id": item.id,
                "scores": score(item, output.text),
                "steps": output.stats.steps,
                "ensembled": output.stats.steps_ensembled,
                "forwards": {name: member.forwards for name, member in output.stats.members.items()},
                "seconds": round(seconds, 4),
                "finish": output.finish_reason.value,
                "text": output.text,
            }
            file.write(json.dumps(line) + "\n")


def run_all(args: argparse.Namespace, items: Sequence[Item], ways: Sequence[Way]) -> None:
    """Answers the questions that the file lacks."""
    run = {"task": args.task, "members": args.members, "dtype": args.dtype}
    done = {(line["way"], line["id"]) for line in lines(args.out) if run.items() <= line.items()}
    members = RealMembers(args.members, args.dtype, args.cache_gib, args.template)
    ensembles = {way.weights: members.ensemble(way.weights) for way in ways}
    try:
        for start in range(0, len(items), ROUND):
            part = items[start : start + ROUND]
            for way in ways:
                todo = [item for item in part if (way.label, item.id) not in done]
                if todo:
                    measure(ensembles[way.weights], way, todo, run, args.out)
            print(f"{args.task}: {part[-1].id} of {items[-1].id}", flush=True)
    finally:
        for ensemble in ensembles.values():
            ensemble.close()


def report(results: Sequence[dict[str, Any]], first: str) -> None:
    """Prints a table for each task: its configurations over the questions that all of them have answered.

    Args:
        results: Lines of a results file.
        first: The score that determines the best member and the differences.
    """
    tables: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for line in results:
        key = (line["task"], "+".join(line["members"]))
        tables.setdefault(key, {}).setdefault(line["way"], {})[line["id"]] = line
    for key, ways in tables.items():
        ids = sorted(set.intersection(*(set(rows) for rows in ways.values())))
        if not ids:
            print(f"{key}: no question was answered in all ways")
            continue
        kept = {label: [rows[each] for each in ids] for label, rows in ways.items()}
        names = list(kept[next(iter(kept))][0]["scores"])
        by = first if first in names else names[0]
        best = max((label for label in kept if label.endswith("alone")), key=lambda way: mean(kept[way], by))
        title = f"{', '.join(key)}: {len(ids)} questions; best member alone: {best}"
        table = Table("answered by", *names, f"{by} - best", "ensembled", "s a question", title=title)
        for label, rows in kept.items():
            table.add_row(label, *cells(rows, kept[best], names, by))
        Console(width=150).print(table)


def mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    """Returns the mean of a score."""
    return sum(float(row["scores"][name]) for row in rows) / len(rows)


def cells(rows: Sequence[dict[str, Any]], best: Sequence[dict[str, Any]], names: Sequence[str], by: str) -> list[str]:
    """Returns a row: scores with intervals, the paired difference in one of them, share of ensembled steps, seconds."""
    shown_scores = []
    for name in names:
        low, high = bootstrap([row["scores"][name] for row in rows])
        shown_scores.append(f"{100 * mean(rows, name):.1f} ({100 * low:.1f} to {100 * high:.1f})")
    differences = [row["scores"][by] - other["scores"][by] for row, other in zip(rows, best, strict=True)]
    low, high = bootstrap(differences)
    difference = f"{100 * sum(differences) / len(rows):+.1f} ({100 * low:+.1f} to {100 * high:+.1f})"
    ensembled = sum(row["ensembled"] for row in rows) / sum(row["steps"] for row in rows)
    seconds = sum(row["seconds"] for row in rows) / len(rows)
    return [*shown_scores, "" if rows is best else difference, f"{ensembled:.0%}", f"{seconds:.2f}"]


def weights_from(text: str) -> tuple[float, ...]:
    """Parses ``1:2:4``."""
    return tuple(float(part) for part in text.split(":"))


def main() -> None:
    """Answers and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("task", choices=(*TASKS, "report"), help="report: only print the tables of --out")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per answer; appended to")
    parser.add_argument("--data", type=Path, help="the data file of squad-chat, squad-shots or nq")
    parser.add_argument("--members", nargs="+", default=["smollm2", "qwen"], help=f"folders in {REAL}")
    parser.add_argument("--weights", nargs="+", type=weights_from, help="such as 1:3 1:1; the first for thresholds")
    parser.add_argument("--gate", help="gate for the thresholds; default: the last member")
    parser.add_argument("--thresholds", type=float, nargs="*", default=[0.7, 0.9, 0.5])
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--question", type=int, default=0, help="which question of each SQuAD passage; default 0")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument(
        "--cache-gib", type=float, default=1.0, help="0: every configuration computes its prompts, for comparable times"
    )
    parser.add_argument("--template", help="a Jinja chat template for members without one")
    parser.add_argument("--score", default="f1", help="the score of the paired differences; code has one only")
    args = parser.parse_args()
    if args.task != "report":
        items = load_items(args.task, args.data, args.questions, args.question)
        weights = args.weights or [tuple(1.0 for _ in args.members)]
        run_all(args, items, ways_of(args.members, weights, args.gate or args.members[-1], args.thresholds))
    report(lines(args.out), args.score)


if __name__ == "__main__":
    main()
