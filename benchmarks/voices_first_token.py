"""Time to the first token: passages as voices, cold and warm, against prefix caching of one long prompt.

Run by ``python -m benchmarks.voices_first_token --data SQUAD.json --out times.jsonl``, which prints the table and
continues where the last run ended. Situations of one question are measured one after the other, so that other load on
the machine meets all alike. Each has a number of its own at the beginning of its prompts: nothing is in the KV cache
but what the situation itself puts there:

- ``long, cold``: no passage was read before.
- ``long, same order``: another question was asked about the same passages in the same order.
- ``long, other order``: another question was asked about the same passages in another order.
- ``long, one other``: another question was asked, for which the retriever found one other passage, and this one first.
- ``voices, cold``; ``voices, warm``: documents that were not read before; those that `Ensemble.warm` has read.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.voices import REAL, answer, read_sets
from benchmarks.voices_arms import PLACE, Request, plain, prompt_of, voices
from benchmarks.voices_data import Case
from gac_core import Ensemble, MemberConfig

Row = dict[str, Any]
COUNTS = (4, 10)
LONG = ("long, cold", "long, same order", "long, other order", "long, one other")
VOICES = ("voices, cold", "voices, warm", "voices with a prior, warm")


def earlier(situation: str, case: Case, other: Case) -> Case | None:
    """Returns what was asked before, in one prompt; None for nothing.

    Args:
        situation: One of `LONG`.
        case: The question with its passages.
        other: Another question with other passages.
    """
    before = replace(case, question=other.question)
    if situation == "long, same order":
        return before
    if situation == "long, other order":
        passages = list(case.passages)
        random.Random(case.id).shuffle(passages)
        return replace(before, passages=tuple(passages))
    if situation == "long, one other":
        return replace(before, passages=(other.passages[0], *case.passages[1:]))
    return None


def first_token(ensemble: Ensemble, request: Request) -> Row:
    """Returns what the first token of a request cost."""
    once = Request(request.prompt, {**request.arguments, "max_tokens": 1})
    output, seconds, processor = answer(ensemble, once)
    work = output.stats.members.values()
    return {
        "first": round(output.stats.first_token_seconds, 4),
        "seconds": round(seconds, 4),
        "processor": round(processor, 4),
        "computed": sum(each.tokens for each in work),
        "reused": sum(each.reused_tokens for each in work),
    }


def measured(ensemble: Ensemble, case: Case, other: Case, salt: int) -> Iterator[tuple[str, Row]]:
    """Yields what the first token costs in each situation.

    Args:
        ensemble: The ensemble.
        case: A question with its passages.
        other: Another question with other passages.
        salt: The first of the numbers that begin the prompts, each of which no other prompt has.
    """
    for number, situation in enumerate(LONG, salt):
        before = earlier(situation, case, other)
        if before is not None:
            first_token(ensemble, plain(before.passages, before, salt=number))
        yield situation, first_token(ensemble, plain(case.passages, case, salt=number))
    number = salt + len(LONG)
    yield "voices, cold", first_token(ensemble, voices(case, prior=False, salt=number))
    asked = replace(case, question=other.question)
    ensemble.warm(prompt_of(case, PLACE, number + 1), [passage.text for passage in case.passages])
    yield "voices, warm", first_token(ensemble, voices(case, prior=False, salt=number + 1))
    yield "voices with a prior, warm", first_token(ensemble, voices(asked, prior=True, salt=number + 1))
    ensemble.warm(prompt_of(case, PLACE, number + 1), [passage.text for passage in case.passages], pin=False)


def table(rows: Sequence[Row], count: int) -> str:
    """Returns the table of a number of passages, in Markdown; ratios are medians over questions."""
    seconds: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["passages"] == count:
            seconds.setdefault(row["situation"], {})[row["id"]] = row
    warm = seconds["voices, warm"]
    lines = [
        f"| {count} passages, {len(warm)} questions | tokens computed | seconds to the first token | of the processor "
        "| times that of warm voices |",
        "|---|---|---|---|---|",
    ]
    for situation, found in seconds.items():
        ratios = sorted(row["processor"] / warm[name]["processor"] for name, row in found.items() if name in warm)
        middle = {key: median(row[key] for row in found.values()) for key in ("computed", "first", "processor")}
        lines.append(
            f"| {situation} | {middle['computed']:.0f} | {middle['first']:.2f} | {middle['processor']:.2f} "
            f"| {median(ratios):.1f} ({ratios[0]:.1f} to {ratios[-1]:.1f}) |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measures and prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True, help="JSON lines; continued if it exists")
    parser.add_argument("--data", type=Path, required=True, help="squad-300.json")
    parser.add_argument("--member", default="qwen", help=f"a folder in {REAL}")
    parser.add_argument("--questions", type=int, default=10)
    parser.add_argument("--dtype", default="bfloat16")
    args = parser.parse_args()
    lines = args.out.read_text(encoding="utf-8").splitlines() if args.out.exists() else []
    rows = [json.loads(line) for line in lines]
    done = {(row["id"], row["passages"]) for row in rows if row["situation"] == VOICES[-1]}
    sets = {count: found for count in COUNTS for found in read_sets([f"bm25-{count - 1}"], args.data, 0).values()}
    with Ensemble.load([MemberConfig(str(REAL / args.member), name=args.member)], dtype=args.dtype) as ensemble:
        for number in range(args.questions):
            for count, found in sets.items():
                # Far apart in the shuffled order.
                case, other = found[number], found[number + 150]
                if (case.id, count) in done:
                    continue
                salt = 1000 * (len(COUNTS) * number + COUNTS.index(count) + 1)
                for situation, row in measured(ensemble, case, other, salt):
                    rows.append({"id": case.id, "passages": count, "situation": situation, **row})
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print("\n\n".join(table(rows, count) for count in COUNTS))


if __name__ == "__main__":
    main()
