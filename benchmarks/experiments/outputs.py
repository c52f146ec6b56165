"""Token level against output level: ensembles against choices among the members' complete answers.

Run by ``python -m benchmarks.experiments.outputs RESULTS``; see docs/experiments.md. RESULTS is a results file of `gac
eval`, `gac sweep` or `benchmarks.trio`; with ``--run``, the members and the ensembles answer first.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence

import numpy as np

from benchmarks.experiments.grid import Answered, add_arguments, answer_missing, best_alone, read_answers
from benchmarks.experiments.plots import markdown, percent
from benchmarks.experiments.wrong_tokens import majority, most_confident
from benchmarks.trio import NAMES
from gac_core.evaluation.settings import alone, every_step, parse_weights
from gac_core.evaluation.statistics import compare, mean_interval


def chosen_scores(members: Sequence[Answered]) -> dict[str, list[float]]:
    """Returns the score of the complete answer that each rule chooses for each question.

    Args:
        members: Each member alone, on the same questions.
    """
    scores: dict[str, list[float]] = {"majority of complete answers": [], "most confident complete answer": []}
    upper = []
    for answers in zip(*(each.answers for each in members), strict=True):
        by_name = {answer.setting: answer for answer in answers}
        confidences = {name: answer.confidence or 0.0 for name, answer in by_name.items()}
        chosen = majority({name: answer.text for name, answer in by_name.items()}, confidences)
        scores["majority of complete answers"].append(by_name[chosen].score)
        scores["most confident complete answer"].append(by_name[most_confident(confidences)].score)
        upper.append(max(answer.score for answer in answers))
    return scores | {"some member's answer (upper bound)": upper}


def table(scores: Mapping[str, Sequence[float]], tasks: Sequence[str], best: str) -> str:
    """Returns the mean score by task and over all questions, and the difference to the best member.

    Args:
        scores: By way of answering, a score per question.
        tasks: The task of each question.
        best: The best member alone.
    """
    names = list(dict.fromkeys(tasks))
    rows = []
    for label, own in scores.items():
        by_task = [np.mean([score for score, task in zip(own, tasks, strict=True) if task == name]) for name in names]
        difference = "" if label == best else percent(compare(own, scores[best], tasks).difference, sign="+")
        cells = [f"{100 * mean:.1f}" for mean in by_task]
        rows.append([label, *cells, percent(mean_interval(own, tasks)), difference])
    heads = [f"{name} ({tasks.count(name)})" for name in names]
    return markdown(["answered by", *heads, f"pooled ({len(tasks)})", f"against {best}"], rows)


def main() -> None:
    """Answers what is missing if asked to, and prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add_arguments(parser)
    parser.add_argument("--weights", nargs="+", default=["1:1:1"], help="one ensemble of every step each")
    args = parser.parse_args()
    settings = [*map(alone, NAMES), *(every_step(NAMES, parse_weights(each, NAMES)) for each in args.weights)]
    if args.run:
        answer_missing(args.results, args.data, args.questions, settings)
    answered = read_answers(args.results, lambda setting: setting in settings, args.least)
    scores = {each.setting.label: each.scores for each in answered}
    scores |= chosen_scores([each for each in answered if each.setting.alone])
    print(table(scores, [each.task for each in answered[0].answers], best_alone(answered).setting.label))


if __name__ == "__main__":
    main()
