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


def by_rank(arms: Mapping[str, Mapping[str, Row]], base: str = BASE) -> str:
    """Returns F1 where the retriever ranks the gold passage first, and elsewhere, in Markdown."""
    cases = sorted(set.intersection(*(set(found) for found in arms.values())))
    first = [case for case in cases if arms[base][case]["gold"] == 0]
    parts = {"first": first, "lower": [case for case in cases if case not in first]}
    heads = " | ".join(f"F1, gold passage {name} ({len(some)}) | against {base}" for name, some in parts.items())
    lines = [f"| answered by | {heads} |", "|---|---|---|---|---|"]
    for arm, found in arms.items():
        cells = []
        for some in parts.values():
            ours, others = ([rows[case]["f1"] for case in some] for rows in (found, arms[base]))
            against = "" if arm == base else shown(compare(ours, others).difference, "+")
            cells += [shown(mean_interval(ours)), against]
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


SIGNALS = ("best score", "confidence", "entropy", "logprob", "lift", "share", "agreement", "not_in_documents")


def signals(row: Row) -> dict[str, float]:
    """Returns what an answer tells about doubt, each larger for more doubt."""
    doubt: dict[str, Any] = row.get("doubt") or {}
    found = {name: doubt.get(name) for name in ("entropy", "not_in_documents")}
    surer = {name: doubt.get(name) for name in ("agreement", "share", "lift", "logprob")}
    surer |= {"confidence": row.get("confidence"), "best score": row.get("best")}
    found |= {name: None if value is None else -value for name, value in surer.items()}
    return {name: value for name, value in found.items() if value is not None}


def _auroc_cell(signal: str, present: Mapping[str, Row], missing: Mapping[str, Row]) -> str:
    """Returns how well a signal tells missing gold passages; empty where the answers lack it."""
    pairs = [(signals(missing[case]), signals(present[case])) for case in missing if case in present]
    values = [(one[signal], two[signal]) for one, two in pairs if signal in one and signal in two]
    if not values:
        return ""
    found = auroc_interval(*zip(*values, strict=True))
    return f"{found.value:.2f} ({found.low:.2f} to {found.high:.2f})"


def detection(arms: Mapping[str, Mapping[str, Row]]) -> str:
    """Returns how well signals tell whether the gold passage is missing, in Markdown: a column for each arm."""
    names = [arm.removesuffix(", no gold") for arm in arms if arm.endswith(", no gold")]
    sides = {name: (arms.get(name) or arms.get(f"{name}, scores", {}), arms[f"{name}, no gold"]) for name in names}
    heads = [f"{name} ({len(set(present) & set(missing))})" for name, (present, missing) in sides.items()]
    lines = [f"| AUROC of | {' | '.join(heads)} |", f"|---|{'---|' * len(heads)}"]
    for signal in SIGNALS:
        cells = [_auroc_cell(signal, *side) for side in sides.values()]
        if any(cells):
            lines.append(f"| {signal} | {' | '.join(cells)} |")
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
    parser.add_argument("--pool", nargs="+", default=[], help="sets for one table by the gold passage's rank")
    parser.add_argument("--arms", nargs="+", help="only these, in this order")
    args = parser.parse_args()
    rows = read_rows(args.results)
    for name in dict.fromkeys(row["set"] for row in rows):
        found = by_arm(rows, name)
        arms = {arm: found[arm] for arm in args.arms or found if arm in found}
        print(f"\n## {name}\n\n{accuracy(arms, args.base)}")
        if any(arm.endswith(", injected") for arm in found):
            print(f"\n{robustness(found)}")
        print(f"\n{citations(found)}")
        if any(arm.endswith(", no gold") for arm in found):
            print(f"\n{detection(found)}")
    if args.pool:
        pooled = [{**row, "id": f"{row['set']} {row['id']}", "set": ""} for row in rows if row["set"] in args.pool]
        found = by_arm(pooled, "")
        print(f"\n{by_rank({arm: found[arm] for arm in args.arms or found if arm in found}, args.base)}")


if __name__ == "__main__":
    main()
