"""Thresholds against accuracy, share of ensembled steps, and latency.

Run by ``python -m benchmarks.experiments.thresholds RESULTS``; see docs/experiments.md. RESULTS is a results file of
`gac eval`, `gac sweep` or `benchmarks.trio`; with ``--run``, a range of thresholds is answered first. In such files
prompts are shared between settings, so that their times cannot be compared: ``--latency FILE`` is a results file of
fewer questions, answered without prefix caching; with ``--run`` it is made too.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments.grid import Answered, add_arguments, answer_missing, best_alone, read_answers
from benchmarks.experiments.plots import BLUE, GREY, ORANGE, OUT, markdown, new_figure, percent, save
from benchmarks.trio import NAMES
from gac_core.evaluation.settings import Setting, alone, every_step, parse_weights, thresholded
from gac_core.evaluation.statistics import compare, mean_interval

THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.99)


def settings_of(weights: Sequence[float], gate: str, thresholds: Sequence[float]) -> list[Setting]:
    """Returns: every step, the thresholds from the largest to the smallest, and the gate alone."""
    descending = sorted(thresholds, reverse=True)
    gated = [thresholded(NAMES, gate, threshold, weights) for threshold in descending]
    return [every_step(NAMES, weights), *gated, alone(gate)]


def share_ensembled(answered: Answered) -> float:
    """Returns the share of steps that combined all members."""
    return sum(each.ensembled for each in answered.answers) / sum(each.steps for each in answered.answers)


def forwards(answered: Answered) -> float:
    """Returns the mean number of forward passes of an answer, over all members."""
    works = [sum(work.forwards for work in each.members.values()) for each in answered.answers]
    return sum(works) / len(works)


def same_text(answered: Answered, other: Answered) -> float:
    """Returns the share of answers with the same text as another setting's."""
    pairs = zip(answered.answers, other.answers, strict=True)
    return sum(one.text == two.text for one, two in pairs) / len(answered.answers)


def seconds(answered: Answered) -> float:
    """Returns the mean time of an answer, in seconds."""
    return sum(each.seconds for each in answered.answers) / len(answered.answers)


def table(answered: Sequence[Answered], timed: Sequence[Answered]) -> str:
    """Returns the table of thresholds.

    Args:
        answered: Every step first; the gate alone last.
        timed: The same settings, answered without prefix caching; empty for no times.
    """
    whole = answered[0]
    times = {each.setting.label: f"{1000 * seconds(each):.0f}" for each in timed}
    tasks = [answer.task for answer in whole.answers]
    rows = []
    for each in answered:
        difference = percent(compare(each.scores, whole.scores, tasks).difference, sign="+")
        rows.append(
            [
                each.setting.label,
                percent(mean_interval(each.scores, tasks)),
                "" if each is whole else difference,
                f"{100 * same_text(each, whole):.0f}",
                f"{100 * share_ensembled(each):.0f}",
                f"{forwards(each):.1f}",
                times.get(each.setting.label, ""),
            ]
        )
    header = ["answered by", "score", "against every step", "same text, %", "steps ensembled, %", "forwards", "ms"]
    return markdown(header, rows)


def plot(answered: Sequence[Answered], timed: Sequence[Answered], best: Answered, path: Path) -> None:
    """Draws the score against the share of ensembled steps, and if there are times against the time."""
    figure, panels = new_figure(8.0, 3.4, 2 if timed else 1)
    tasks = [answer.task for answer in answered[0].answers]
    intervals = [mean_interval(each.scores, tasks) for each in answered]
    scores = [100 * each.value for each in intervals]
    errors = [
        [100 * (each.value - each.low) for each in intervals],
        [100 * (each.high - each.value) for each in intervals],
    ]
    costs = [("steps ensembled, %", [100 * share_ensembled(each) for each in answered])]
    if timed:
        milliseconds = {each.setting.label: 1000 * seconds(each) for each in timed}
        costs.append(("ms an answer", [milliseconds[each.setting.label] for each in answered]))
    for axes, (label, values) in zip(panels, costs, strict=True):
        axes.errorbar(values, scores, yerr=errors, fmt="o-", color=BLUE, ecolor=GREY, elinewidth=1, markersize=5)
        axes.axhline(100 * best.mean, color=ORANGE, linestyle="--", label=f"{best.setting.label} alone")
        for each, x, y in zip(answered, values, scores, strict=True):
            name = "every step" if each.setting.threshold is None else f"{each.setting.threshold:g}"
            axes.annotate(
                "gate alone" if each.setting.alone else name, (x, y), (3, 5), textcoords="offset points", fontsize=8
            )
        axes.set_xlabel(label)
        axes.set_ylabel("score")
        axes.legend(frameon=False, loc="lower right")
    save(figure, path)


def main() -> None:
    """Answers what is missing if asked to, prints the table and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--weights", default="1:1:2")
    parser.add_argument("--gate", default="qwen")
    parser.add_argument("--thresholds", type=float, nargs="+", default=THRESHOLDS)
    parser.add_argument("--latency", type=Path, help="results file without prefix caching")
    parser.add_argument("--latency-questions", type=float, default=0.2, help="as --questions, for --latency")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for thresholds.svg")
    args = parser.parse_args()
    settings = settings_of(parse_weights(args.weights, NAMES), args.gate, args.thresholds)
    members = [alone(name) for name in NAMES if name != args.gate]
    if args.run:
        answer_missing(args.results, args.data, args.questions, [*settings, *members])
        if args.latency:
            answer_missing(args.latency, args.data, args.latency_questions, settings, cache_gib=0)
    answered = read_answers(args.results, lambda setting: setting in [*settings, *members], args.least)
    timed = read_answers(args.latency, lambda setting: setting in settings) if args.latency else []
    best = best_alone(answered)
    order = {setting.label: place for place, setting in enumerate(settings)}
    own = sorted((each for each in answered if each.setting in settings), key=lambda each: order[each.setting.label])
    print(f"{len(best.answers)} questions; best member {best.setting.label}: {100 * best.mean:.1f}\n")
    print(table(own, timed))
    plot(own, timed, best, args.out / "thresholds.svg")


if __name__ == "__main__":
    main()
