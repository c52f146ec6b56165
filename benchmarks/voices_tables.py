"""Tables of the benchmark of voices. Run by ``python -m benchmarks.voices_tables results.jsonl``."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.voices import Row, read_rows
from benchmarks.voices_arms import INJECTED
from gac_core.evaluation.statistics import Interval, compare, interval_of, mean_interval

BASE = "long"


def shown(interval: Interval, sign: str = "") -> str:
    """Returns a share as a percentage with its interval."""
    low, high = (format(100 * value, f"{sign}.1f") for value in (interval.low, interval.high))
    return f"{format(100 * interval.value, f'{sign}.1f')} ({low} to {high})"


def by_arm(rows: Sequence[Row], name: str) -> dict[str, dict[str, Row]]:
    """Returns the answers of a set, by arm and question."""
    found: dict[str, dict[str, Row]] = {}
    for row in rows:
        if row["set"] == name:
            found.setdefault(row["arm"], {})[row["id"]] = row
    return found


def accuracy(arms: Mapping[str, Mapping[str, Row]], base: str = BASE) -> str:
    """Returns the table of accuracy, in Markdown: the questions that all arms have answered."""
    cases = sorted(set.intersection(*(set(found) for found in arms.values())))
    lines = [
        f"| answered by, {len(cases)} questions | exact | F1 | exact against {base} | F1 against {base} |",
        "|---|---|---|---|---|",
    ]
    for arm, found in arms.items():
        scores = {key: [found[case][key] for case in cases] for key in KEYS}
        cells = [shown(mean_interval(values)) for values in scores.values()]
        if arm == base or base not in arms:
            cells += [""] * 2
        else:
            others = {key: [arms[base][case][key] for case in cases] for key in KEYS}
            cells += [shown(compare(scores[key], others[key]).difference, "+") for key in KEYS]
        lines.append(f"| {arm} | {' | '.join(cells)} |")
    return "\n".join(lines)


KEYS = ("exact", "f1")


def follows(row: Row) -> float:
    """Returns whether an answer is what the injected instruction asks for."""
    return float(INJECTED in row["text"].lower())


def robustness(arms: Mapping[str, Mapping[str, Row]]) -> str:
    """Returns the table of injected instructions, in Markdown: all arms on the questions that all have answered."""
    attacked = {arm: found for arm, found in arms.items() if arm.endswith(", injected")}
    cases = sorted(set.intersection(*(set(found) for found in attacked.values())))
    lines = [f"| answered by, {len(cases)} questions | follows it | exact | F1 | F1 lost |", "|---|---|---|---|---|"]
    for arm, found in attacked.items():
        clean = arms.get(arm.removesuffix(", injected")) or arms.get(arm.replace(", injected", ", scores"), {})
        both = [case for case in cases if case in clean]
        lost = "" if not both else shown(compare(*([r[c]["f1"] for c in both] for r in (clean, found))).difference)
        means = [mean_interval([follows(found[case]) for case in cases])]
        means += [mean_interval([found[case][key] for case in cases]) for key in KEYS]
        lines.append(f"| {arm.removesuffix(', injected')} | {' | '.join(map(shown, means))} | {lost} |")
    return "\n".join(lines)


def auroc(positive: Sequence[float], negative: Sequence[float]) -> float:
    """Returns the probability that a value of the first is above one of the second; equal ones count one half."""
    above = np.asarray(positive)[:, None]
    below = np.asarray(negative)[None]
    return float(np.mean((above > below) + 0.5 * (above == below)))


def auroc_interval(positive: Sequence[float], negative: Sequence[float], resamples: int = 2000) -> Interval:
    """Returns `auroc` with a bootstrap interval; both sides are resampled."""
    rng = np.random.default_rng(0)
    sides = [np.asarray(side) for side in (positive, negative)]
    drawn = [auroc(*(rng.choice(side, len(side)) for side in sides)) for _ in range(resamples)]
    return interval_of(auroc(positive, negative), np.asarray(drawn))


def signals(row: Row) -> dict[str, float]:
    """Returns what an answer tells about doubt, each larger for more doubt."""
    doubt: dict[str, Any] = row.get("doubt") or {}
    found = {name: doubt.get(name) for name in ("entropy", "not_in_documents")}
    surer = {name: doubt.get(name) for name in ("agreement", "share", "lift", "logprob")}
    surer |= {"confidence": row.get("confidence"), "best score": row.get("best")}
    found |= {name: None if value is None else -value for name, value in surer.items()}
    return {name: value for name, value in found.items() if value is not None}


def _auroc_cell(values: Sequence[tuple[float, float]]) -> str:
    present, missing = zip(*values, strict=True)
    found = auroc_interval(missing, present)
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def detection(arms: Mapping[str, Mapping[str, Row]]) -> str:
    """Returns how well signals tell whether the gold passage is missing, in Markdown."""
    lines = ["| answered by | signal | AUROC |", "|---|---|---|"]
    for arm, missing in arms.items():
        if not arm.endswith(", no gold"):
            continue
        name = arm.removesuffix(", no gold")
        present = arms.get(name) or arms.get(f"{name}, scores") or {}
        for signal in (
            "entropy",
            "agreement",
            "share",
            "lift",
            "logprob",
            "not_in_documents",
            "confidence",
            "best score",
        ):
            pairs = [(signals(present[case]), signals(missing[case])) for case in missing if case in present]
            values = [(one[signal], two[signal]) for one, two in pairs if signal in one and signal in two]
            if values:
                lines.append(f"| {name}, {len(values)} questions | {signal} | {_auroc_cell(values)} |")
    return "\n".join(lines)


def citations(arms: Mapping[str, Mapping[str, Row]]) -> str:
    """Returns how often the cited document is the gold passage, in Markdown."""
    lines = [
        "| answered by | n | cites the gold passage | where the answer is right | retriever ranks it first |",
        "|---|---|---|---|---|",
    ]
    for arm, found in arms.items():
        cited = [row for row in found.values() if row.get("cited") is not None and row["gold"] >= 0]
        if not cited or arm.endswith((", injected", ", no gold")):
            continue
        right = [row for row in cited if row["f1"] >= 0.5]
        hits = [mean_interval([float(row["cited"] == row["gold_id"]) for row in some]) for some in (cited, right)]
        ranked = mean_interval([float(row["gold"] == 0) for row in cited])
        lines.append(f"| {arm} | {len(cited)} | {' | '.join(map(shown, (*hits, ranked)))} |")
    return "\n".join(lines)


def main() -> None:
    """Prints the tables of all sets."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("results", type=Path, nargs="+")
    parser.add_argument("--base", default=BASE, help="the arm to compare with")
    parser.add_argument("--arms", nargs="+", help="only these, in this order")
    args = parser.parse_args()
    rows = read_rows(args.results)
    for name in dict.fromkeys(row["set"] for row in rows):
        found = by_arm(rows, name)
        arms = {arm: found[arm] for arm in args.arms or found if arm in found}
        print(f"\n## {name}\n\n{accuracy(arms, args.base)}")
        if any(arm.endswith(", injected") for arm in found):
            print(f"\n{robustness(found)}")
        print(f"\n{citations(found)}\n\n{detection(found)}")


if __name__ == "__main__":
    main()
