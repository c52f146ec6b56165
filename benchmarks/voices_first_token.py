"""Time to the first token: passages as voices, cold and warm, against prefix caching of one long prompt.

Run by ``python -m benchmarks.voices_first_token --data SQUAD.json --out times.jsonl``, which prints the table and
continues where the last run ended. Situations of one question are measured one after the other, so that other load on
the machine meets all alike. The long prompts of a question, and its voices, begin with a number of their own:
nothing is in the KV cache but what these prompts put there. In the order of measurement:

- ``long, cold``: no passage was read before.
- ``long, same order``: then another question about the same passages in the same order.
- ``long, other order``: another question about the same passages in another order.
- ``long, one other``: another question, for which the retriever found one other passage, and this one first.
- ``voices, cold``: no passage was read by a voice before.
- ``voices, warm``: another question about the same passages in another order, which `Ensemble.warm` has pinned.
- ``voices, one other``: the same as ``long, one other``: one document is cold.
- ``voices with a prior, warm``: as ``voices, warm``, with one more voice.
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
LAST = "voices with a prior, warm"


def reordered(case: Case) -> Case:
    """Returns the case with another passage first and the others in another order."""
    passages = list(case.passages[1:])
    random.Random(case.id).shuffle(passages)
    return replace(case, passages=(*passages, case.passages[0]))


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


def measured(ensemble: Ensemble, case: Case, others: Sequence[Case], salt: int) -> Iterator[tuple[str, Row]]:
    """Yields what the first token costs in each situation.

    Args:
        ensemble: The ensemble.
        case: A question with its passages.
        others: Three other questions with other passages.
        salt: Begins the long prompts, and the number after it those of voices; no others begin so.
    """
    before, again, last = (replace(case, question=other.question) for other in others)
    new = next(each for each in others[0].passages if each.place not in {own.place for own in case.passages})
    changed = replace(again, passages=(new, *case.passages[1:]))
    for situation, asked in (
        ("long, cold", before),
        ("long, same order", case),
        ("long, other order", reordered(case)),
        ("long, one other", changed),
    ):
        yield situation, first_token(ensemble, plain(asked.passages, asked, salt))
    salt += 1
    yield "voices, cold", first_token(ensemble, voices(before, prior=False, salt=salt))
    warmed = prompt_of(case, PLACE, salt), [passage.text for passage in case.passages]
    ensemble.warm(*warmed)
    yield "voices, warm", first_token(ensemble, voices(reordered(case), prior=False, salt=salt))
    yield "voices, one other", first_token(ensemble, voices(changed, prior=False, salt=salt))
    yield LAST, first_token(ensemble, voices(last, prior=True, salt=salt))
    ensemble.warm(*warmed, pin=False)


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
    done = {(row["id"], row["passages"]) for row in rows if row["situation"] == LAST}
    sets = {count: found for count in COUNTS for found in read_sets([f"bm25-{count - 1}"], args.data, 0).values()}
    with Ensemble.load([MemberConfig(str(REAL / args.member), name=args.member)], dtype=args.dtype) as ensemble:
        for number in range(args.questions):
            for count, found in sets.items():
                # Far apart in the shuffled order.
                case, others = found[number], [found[number + ahead] for ahead in (150, 200, 250)]
                if (case.id, count) in done:
                    continue
                salt = 1000 * (len(COUNTS) * number + COUNTS.index(count) + 1)
                for situation, row in measured(ensemble, case, others, salt):
                    rows.append({"id": case.id, "passages": count, "situation": situation, **row})
                    with args.out.open("a", encoding="utf-8") as file:
                        file.write(json.dumps(rows[-1]) + "\n")
    print("\n\n".join(table(rows, count) for count in COUNTS))


if __name__ == "__main__":
    main()
