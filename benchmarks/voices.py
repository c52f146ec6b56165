"""Passages as voices against one long prompt, on SQuAD-300 with hard negatives (docs/voices-results.md).

Run by ``python -m benchmarks.voices long top gold "mean, scores" --data SQUAD.json --sets bm25-9 --out results.jsonl``;
``python -m benchmarks.voices_tables results.jsonl`` prints the tables. Every answer is a line of ``--out``, and a run
with the same file continues where the last one ended. All arms have the same instruction and form; a question is
answered by all arms before the next one, so that what they share is computed once (prefix caching).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.voices_arms import ARMS, Request, without_gold
from benchmarks.voices_data import Case, bm25, cases, minilm
from gac_core import Ensemble, MemberConfig
from gac_core.evaluation.metrics import METRICS
from gac_core.evaluation.questions import Question
from gac_core.evaluation.settings import parse_weights
from gac_core.output import RequestOutput

REAL = Path(os.environ.get("GAC_REAL_MODELS") or Path.home() / ".cache" / "gac-real-models")
Row = dict[str, Any]
CACHE_GIB = 2.0
"""Holds all 300 passages as read by qwen and smollm2: 0.7 GiB each in bfloat16."""


class Rows:
    """Answers by set, arm and question, kept in a file of JSON lines.

    Args:
        path: The file; read if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self.rows: dict[tuple[str, str, str], Row] = {}
        self._by_request: dict[str, Row] = {}
        for row in read_rows([path] if path.exists() else []):
            self._keep(row)

    def _keep(self, row: Row) -> None:
        self.rows[row["set"], row["arm"], row["id"]] = row
        self._by_request.setdefault(row["request"], row)

    def add(self, row: Row) -> None:
        """Keeps an answer."""
        self._keep(row)
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")

    def same(self, request: str) -> Row | None:
        """Returns the answer to an equal request: the best passage alone is the same with 4 and 9 negatives."""
        return self._by_request.get(request)


def read_rows(paths: Sequence[Path]) -> list[Row]:
    """Returns the answers of files."""
    return [json.loads(line) for path in paths for line in path.read_text(encoding="utf-8").splitlines()]


def read_sets(names: Sequence[str], data: Path, question: int) -> dict[str, list[Case]]:
    """Returns the cases of each set, ``"<retriever>-<negatives>"``, in the same order of questions."""
    scorers = {"bm25": bm25, "minilm": functools.partial(minilm, model=str(REAL / "minilm"))}
    # One retrieval for all sets of a retriever.
    cached = {name: functools.cache(lambda *texts, scorer=scorer: scorer(*texts)) for name, scorer in scorers.items()}
    read = {}
    for name in names:
        retriever, _, negatives = name.partition("-")
        scorer = cached[retriever]
        read[name] = cases(data, lambda *texts, use=scorer: use(*map(tuple, texts)), int(negatives), question)
    return read


def answer(ensemble: Ensemble, request: Request) -> tuple[RequestOutput, float, float]:
    """Returns the answer to a request, and the seconds that it took: of the clock, and of the processor."""
    began, worked = time.perf_counter(), time.process_time()
    output = ensemble.generate(request.prompt, **request.arguments)
    return output, time.perf_counter() - began, time.process_time() - worked


def row_of(case: Case, request: Request, output: RequestOutput, seconds: float, processor: float) -> Row:
    """Returns the line of an answer."""
    asked = Question(case.id, case.question, case.answers)
    work = output.stats.members.values()
    cited = output.document_shares
    return {
        "id": case.id,
        "request": request.digest,
        "text": output.text,
        **{name: METRICS[name].score(output.text, asked) for name in ("exact", "f1", "contains")},
        "confidence": output.stats.confidence,
        "cited": max(cited, key=lambda name: cited[name]) if cited else None,
        "doubt": None if output.doubt is None else asdict(output.doubt),
        "seconds": round(seconds, 3),
        "processor": round(processor, 3),
        "first": round(output.stats.first_token_seconds, 3),
        "computed": sum(each.tokens for each in work),
        "reused": sum(each.reused_tokens for each in work),
        "steps": output.stats.steps,
        "ensembled": output.stats.steps_ensembled,
    }


def facts(case: Case, arm: str) -> Row:
    """Returns what the retriever made of a question: the gold passage's place and id, and the best score."""
    best = (without_gold(case) if "no gold" in arm else case).passages[0].score
    return {"gold": case.gold, "gold_id": case.id.partition(".")[0], "best": best}


@dataclass(frozen=True)
class Members:
    """How several members answer.

    Attributes:
        weights: One per member.
        gate: Name of the gate; only with a threshold.
        threshold: As `SamplingParams.threshold`.
    """

    weights: tuple[float, ...]
    gate: str | None = None
    threshold: float | None = None

    @property
    def label(self) -> str:
        """Follows the name of an arm."""
        shown = ":".join(f"{weight:g}" for weight in self.weights)
        return f" [{shown}]" if self.threshold is None else f" [{shown}, gate {self.gate} at {self.threshold:g}]"

    @classmethod
    def of(cls, text: str, names: Sequence[str]) -> Members:
        """Returns what ``W:W`` stands for, or ``W:W@T``: with a threshold, the first member being the gate."""
        weights, _, threshold = text.partition("@")
        gate = (names[0], float(threshold)) if threshold else (None, None)
        return cls(parse_weights(weights, names), *gate)


def run(
    ensemble: Ensemble,
    sets: Mapping[str, Sequence[Case]],
    arms: Sequence[str],
    rows: Rows,
    settings: Sequence[Members] = (),
) -> None:
    """Answers the questions of all sets with all arms; one named ``"<arm>@<set>"`` those of this set alone."""
    ways = {each.label: asdict(each) for each in settings} or {"": {}}
    for number, together in enumerate(zip(*sets.values(), strict=True), 1):
        for name, case in zip(sets, together, strict=True):
            for given, (label, arguments) in itertools.product(arms, ways.items()):
                arm, _, only = given.partition("@")
                if only not in ("", name) or (name, arm + label, case.id) in rows.rows:
                    continue
                asked = ARMS[arm](case)
                request = replace(asked, arguments={**asked.arguments, **arguments})
                known = rows.same(request.digest)
                made = known or row_of(case, request, *answer(ensemble, request))
                rows.add({**made, "set": name, "arm": arm + label, **facts(case, arm)})
        if number % 10 == 0:
            print(f"{number} questions", flush=True)


def main() -> None:
    """Answers the questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("arms", nargs="+", help=f"ARM, or ARM@SET for one set alone; arms are {', '.join(ARMS)}")
    parser.add_argument("--out", type=Path, required=True, help="JSON lines, one per answer; continued if it exists")
    parser.add_argument("--data", type=Path, required=True, help="squad-300.json")
    parser.add_argument("--sets", nargs="+", default=["bm25-9"], help="retriever and number of negatives")
    parser.add_argument("--members", nargs="+", default=["qwen"], help=f"folders in {REAL}")
    parser.add_argument("--settings", nargs="+", default=[], help="of several members: weights, such as 3:1 or 3:1@0.7")
    parser.add_argument(
        "--form", choices=("chat", "shots"), default="chat", help="shots: for members without a chat template"
    )
    parser.add_argument("--questions", type=int, default=300)
    parser.add_argument("--question", type=int, default=0, help="which question of each passage; 1 for choosing")
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    unknown = [arm for arm in args.arms if arm.partition("@")[0] not in ARMS]
    if unknown:
        parser.error(f"no such arm: {unknown[0]}")
    read = read_sets(args.sets, args.data, args.question)
    sets = {name: [replace(case, form=args.form) for case in found[: args.questions]] for name, found in read.items()}
    settings = [Members.of(text, args.members) for text in args.settings]
    members = [MemberConfig(str(REAL / name), name=name) for name in args.members]
    with Ensemble.load(members, dtype=args.dtype, progress=False, document_cache_gib=CACHE_GIB) as ensemble:
        run(ensemble, sets, args.arms, Rows(args.out), settings)


if __name__ == "__main__":
    main()
