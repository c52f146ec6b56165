"""Accuracy against the members' weights.

Run by ``python -m benchmarks.experiments.weights RESULTS``; see docs/experiments.md. RESULTS is a results file of `gac
eval`, `gac sweep` or `benchmarks.trio`. With ``--run``, a grid over all weights that sum to 1 is answered first.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.experiments.grid import Answered, add_arguments, answer_missing, best_alone, read_answers
from benchmarks.experiments.plots import GREY, OUT, markdown, new_figure, percent, save
from benchmarks.trio import NAMES
from gac_core.evaluation.settings import Setting, alone, every_step, show_weights
from gac_core.evaluation.statistics import compare, mean_interval


def simplex(members: int, steps: int) -> list[tuple[int, ...]]:
    """Returns all weights that are multiples of 1 / ``steps``, in lowest terms, and equal weights.

    Args:
        members: Number of members.
        steps: Number of steps from 0 to 1.
    """
    found = {(1,) * members: None}
    for parts in itertools.product(range(steps + 1), repeat=members):
        if sum(parts) == steps:
            found[tuple(part // math.gcd(*parts) for part in parts)] = None
    return list(found)


def setting_of(weights: Sequence[float]) -> Setting:
    """Returns the setting: a member alone where it has all the weight, else every step."""
    (first, *others) = [name for name, weight in zip(NAMES, weights, strict=True) if weight]
    return every_step(NAMES, weights) if others else alone(first)


def weights_of(setting: Setting) -> tuple[float, ...] | None:
    """Returns the weights of a setting; None if it has more than weights, such as a threshold or another rule."""
    if setting.alone is not None:
        return tuple(float(name == setting.alone) for name in NAMES) if setting == alone(setting.alone) else None
    if setting.weights is None or tuple(setting.weights) != NAMES:
        return None
    weights = tuple(setting.weights.values())
    return weights if setting == every_step(NAMES, weights) else None


def shares_of(answered: Answered) -> tuple[float, ...]:
    """Returns the weights of a setting that has nothing but weights, with a sum of 1."""
    weights = weights_of(answered.setting)
    assert weights is not None
    return tuple(weight / sum(weights) for weight in weights)


def table(answered: Sequence[Answered], best: Answered) -> str:
    """Returns the mean score by task and over all questions, and the difference to the best member alone."""
    tasks = [each.task for each in best.answers]
    names = list(dict.fromkeys(tasks))
    rows = []
    for each in answered:
        shown = each.setting.alone or show_weights(weights_of(each.setting) or ())
        by_task = [f"{100 * each.only(lambda a, name=name: a.task == name).mean:.1f}" for name in names]  # type: ignore[misc]
        difference = percent(compare(each.scores, best.scores, tasks).difference, sign="+")
        pooled = percent(mean_interval(each.scores, tasks))
        rows.append([shown, *by_task, pooled, "" if each is best else difference])
    heads = [f"{name} ({tasks.count(name)})" for name in names]
    return markdown([":".join(NAMES), *heads, f"pooled ({len(tasks)})", f"against {best.setting.label}"], rows)


def chosen_on_half(answered: Sequence[Answered]) -> str:
    """Returns what the best weights of one half of the questions gain on the other, as a sentence.

    Empty if the answers are to one half only.
    """
    choose = [each.only(lambda answer: answer.half == "choose") for each in answered]
    report = {each.setting.label: each.only(lambda answer: answer.half == "report") for each in answered}
    if not all(each.answers for each in (*choose, *report.values())):
        return ""
    best, member = max(choose, key=lambda each: each.mean), best_alone(choose)
    ours, theirs = report[best.setting.label], report[member.setting.label]
    found = compare(ours.scores, theirs.scores, [answer.task for answer in ours.answers])
    relative = "" if found.relative is None else f", {percent(found.relative, sign='+')} per cent"
    return (
        f"Chosen on {len(best.answers)} questions: {best.setting.label}; best member {member.setting.label}. "
        f"On the other {len(ours.answers)}: {100 * ours.mean:.1f} against {100 * theirs.mean:.1f}, "
        f"{percent(found.difference, sign='+')} points{relative}."
    )


def plot(answered: Sequence[Answered], path: Path) -> None:
    """Draws a triangle of weights for all questions, and one per task."""
    names = list(dict.fromkeys(answer.task for answer in answered[0].answers))
    columns = math.ceil((len(names) + 1) / 2)
    figure, panels = new_figure(3.1 * columns, 5.6, columns, rows=2)
    places = [shares_of(each) for each in answered]
    for axes, name in itertools.zip_longest(panels, [None, *names], fillvalue=""):
        axes.set_axis_off()
        if name != "":
            kept = [each.only(lambda answer, name=name: name in (None, answer.task)) for each in answered]  # type: ignore[misc]
            axes.set_title(name or "all questions", fontsize=10)
            _triangle(axes, places, [100 * each.mean for each in kept])
    save(figure, path)


def _triangle(axes: Any, shares: Sequence[Sequence[float]], values: Sequence[float]) -> None:
    """Draws values at their weights; each corner is a member alone."""
    corners = np.array([(0.0, 0.0), (1.0, 0.0), (0.5, math.sqrt(3) / 2)])
    places = np.array(shares) @ corners
    axes.plot(*corners[[0, 1, 2, 0]].T, color=GREY, linewidth=0.8, zorder=0)
    axes.scatter(*places.T, c=values, cmap="viridis", s=230)
    middle = (min(values) + max(values)) / 2
    for (x, y), value in zip(places, values, strict=True):
        colour = "white" if value < middle else "black"
        axes.text(x, y, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)
    for (x, y), name in zip(corners, NAMES, strict=True):
        axes.text(x, y + (0.13 if y else -0.17), name, ha="center", va="center", fontsize=9)
    axes.set(xlim=(-0.2, 1.2), ylim=(-0.25, 1.1), aspect="equal")


def main() -> None:
    """Answers what is missing if asked to, prints the table and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--steps", type=int, default=4, help="steps of a weight from 0 to 1, for --run")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for weights.svg")
    args = parser.parse_args()
    if args.run:
        settings = [setting_of(weights) for weights in simplex(len(NAMES), args.steps)]
        answer_missing(args.results, args.data, args.questions, settings)
    answered = read_answers(args.results, lambda setting: weights_of(setting) is not None, args.least)
    answered = sorted(answered, key=shares_of, reverse=True)
    print(f"{table(answered, best_alone(answered))}\n\n{chosen_on_half(answered)}")
    plot(answered, args.out / "weights.svg")


if __name__ == "__main__":
    main()
