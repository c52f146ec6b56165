"""Calibration by domain: whether a confidence of 70% means that 70% of the answers are right.

Run by ``python -m benchmarks.experiments.calibration RESULTS``; see docs/experiments.md. RESULTS is a results file of
`gac eval`, `gac sweep` or `benchmarks.trio`; with ``--run``, the members and the ensembles answer first.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from benchmarks.experiments.data import read_sets
from benchmarks.experiments.domains import domain_of
from benchmarks.experiments.grid import Answered, add_arguments, answer_missing, read_answers
from benchmarks.experiments.plots import COLOURS, OUT, markdown, new_figure, save
from benchmarks.trio import NAMES
from gac_core.calibration.reliability import Reliability, calibration_error, reliability
from gac_core.evaluation.results import Answer
from gac_core.evaluation.settings import alone, every_step, parse_weights


def noise(confidences: Sequence[float], rounds: int = 200) -> float:
    """Returns the mean error of perfectly calibrated answers with these confidences: what so few questions give.

    Args:
        confidences: Confidence of each answer.
        rounds: Number of simulations; each draws whether an answer is right with its confidence as probability.
    """
    draws = np.random.default_rng(0).random((rounds, len(confidences))) < np.array(confidences)
    return float(np.mean([calibration_error(confidences, draw.tolist()) for draw in draws]))


def by_domain(answers: Sequence[Answer], domains: Mapping[tuple[str, str], str]) -> dict[str, list[Answer]]:
    """Returns the answers with a confidence, all and by domain.

    Args:
        answers: Answers.
        domains: Domain by task and id.
    """
    kept = [each for each in answers if each.confidence is not None]
    groups: dict[str, list[Answer]] = {"all": kept}
    for each in kept:
        groups.setdefault(domains[each.task, each.id], []).append(each)
    return {name: groups[name] for name in ["all", *sorted(set(groups) - {"all"})]}


def reliability_of(answers: Sequence[Answer]) -> Reliability:
    """Returns the calibration of answers, which have a confidence."""
    return reliability("", "", [each.confidence or 0.0 for each in answers], [each.correct for each in answers])


def cell(answers: Sequence[Answer]) -> str:
    """Returns the calibration error in per cent, and confidence minus accuracy: above 0 for overconfidence."""
    found = reliability_of(answers)
    return f"{100 * found.ece:.1f} ({100 * (found.confidence - found.accuracy):+.1f})"


def table(groups: Mapping[str, Mapping[str, Sequence[Answer]]]) -> str:
    """Returns the table: by domain each setting's calibration error, and its confidence minus accuracy.

    Args:
        groups: By setting and domain, answers.
    """
    first = next(iter(groups.values()))
    rows = []
    for domain, answers in first.items():
        floor = max(noise([each.confidence or 0.0 for each in own[domain]]) for own in groups.values())
        cells = [cell(own[domain]) for own in groups.values()]
        rows.append([domain, str(len(answers)), *cells, f"{100 * floor:.1f}"])
    return markdown(["domain", "questions", *groups, "a calibrated model, at most"], rows)


def plot(groups: Mapping[str, Mapping[str, Sequence[Answer]]], path: Path, least: int = 8) -> None:
    """Draws reliability over all questions, and the calibration error by domain.

    Args:
        groups: By setting and domain, answers.
        path: The file.
        least: Bins with fewer answers are left out.
    """
    figure, (left, right) = new_figure(9.0, 4.0, 2)
    left.plot([0, 1], [0, 1], color="black", linewidth=0.8, linestyle=":")
    names = list(next(iter(groups.values())))
    for colour, (label, own) in zip(COLOURS, groups.items(), strict=False):
        found = {name: reliability_of(own[name]) for name in names}
        bins = [each for each in found["all"].bins if each.count >= least]
        points = [each.confidence for each in bins], [each.accuracy for each in bins]
        left.plot(*points, "o-", color=colour, markersize=4, label=label)
        right.plot([100 * found[name].ece for name in names], range(len(names)), "o", color=colour, markersize=6)
    left.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    left.legend(frameon=False, fontsize=8)
    right.set_yticks(range(len(names)), names)
    right.invert_yaxis()
    right.set_xlim(left=0)
    right.grid(axis="x", alpha=0.3)
    right.set_xlabel("expected calibration error, %")
    save(figure, path)


def main() -> None:
    """Answers what is missing if asked to, prints the table and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--weights", nargs="+", default=["1:1:1", "1:1:2"], help="one ensemble of every step each")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for calibration.svg")
    args = parser.parse_args()
    settings = [*map(alone, NAMES), *(every_step(NAMES, parse_weights(each, NAMES)) for each in args.weights)]
    if args.run:
        answer_missing(args.results, args.data, args.questions, settings)
    sets = read_sets(args.data).values()
    domains = {each.key: domain_of(each.task, each.domain) for own in sets for each in own.questions}
    answered: Sequence[Answered] = read_answers(args.results, lambda setting: setting in settings, args.least)
    groups = {each.setting.label: by_domain(each.answers, domains) for each in answered}
    print(table(groups))
    plot(groups, args.out / "calibration.svg")


if __name__ == "__main__":
    main()
