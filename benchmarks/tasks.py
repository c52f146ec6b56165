"""Question files for `gac eval` from local copies of public benchmarks.

Run by ``python -m benchmarks.tasks DATASETS OUT``. DATASETS has ``squad-300.json`` (a list of passages with their
questions), ``gsm8k-test.jsonl`` and ``benchmarks/{mmlu,nq,triviaqa,bbh}.jsonl``. OUT receives one file per task in the
format of `gac_core.evaluation.questions`; the files under ``benchmarks/`` have it already and are copied.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from benchmarks.real_tasks import SHOTS

COPIED = ("mmlu", "nq", "triviaqa", "bbh")
# The last problems of the test set are the examples of GSM8K, which has no others here.
GSM8K_SHOTS = 4


def squad(path: Path) -> list[dict[str, Any]]:
    """Returns the first question about each passage, after three examples that were written for this benchmark."""
    shots = [
        {"split": "shots", "question": question, "context": context, "answers": [answer]}
        for context, question, answer in SHOTS
    ]
    passages = json.loads(path.read_text(encoding="utf-8"))
    return shots + [
        {"id": str(place), "context": passage["context"], **passage["qas"][0]} for place, passage in enumerate(passages)
    ]


def gsm8k(path: Path) -> list[dict[str, Any]]:
    """Returns the problems; the last ones are examples."""
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    problems = [{"id": str(place), **row} for place, row in enumerate(rows[:-GSM8K_SHOTS])]
    return [{"split": "shots", **row} for row in rows[-GSM8K_SHOTS:]] + problems


def write_lines(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Writes JSON lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_tasks(datasets: Path, out: Path) -> None:
    """Writes the files of all tasks."""
    out.mkdir(parents=True, exist_ok=True)
    write_lines(out / "squad.jsonl", squad(datasets / "squad-300.json"))
    write_lines(out / "gsm8k.jsonl", gsm8k(datasets / "gsm8k-test.jsonl"))
    for name in COPIED:
        shutil.copyfile(datasets / "benchmarks" / f"{name}.jsonl", out / f"{name}.jsonl")


def main() -> None:
    """Writes the files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("datasets", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args()
    write_tasks(args.datasets, args.out)


if __name__ == "__main__":
    main()
