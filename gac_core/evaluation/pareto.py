"""Files of a sweep: a table of all trials as CSV, and a plot of score against cost."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from io import StringIO
from pathlib import Path

from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.sweep import Sweep, Trial

COLUMNS = (
    "setting",
    "weights",
    "combine",
    "gate",
    "gate_rule",
    "threshold",
    "questions",
    "score",
    "low",
    "high",
    "share_ensembled",
    "evaluations",
    "seconds",
    "dropped",
    "front",
)


def as_csv(sweep: Sweep) -> str:
    """Returns all trials as CSV, one a line; empty cells are the ensemble's own settings."""
    file = StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(COLUMNS)
    for trial in sweep.trials:
        setting, score, cost = trial.setting, trial.score, trial.cost
        numbers = (score.value, score.low, score.high, cost.share_ensembled, cost.evaluations, cost.seconds)
        writer.writerow(
            (
                setting.label,
                setting.shown_weights,
                setting.combine,
                setting.gate,
                setting.gate_rule,
                setting.threshold,
                trial.questions,
                *(f"{number:.4f}" for number in numbers),
                trial.dropped,
                trial in sweep.front,
            )
        )
    return file.getvalue()


def plot(sweep: Sweep, path: Path) -> None:
    """Writes a plot of the score against the evaluations of members per answer.

    Raises:
        EvaluationError: matplotlib is not installed, or the file cannot be written.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError("plots need matplotlib: pip install 'gac-ensemble[eval]'") from error
    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    kinds = {
        "member alone": ("s", [each for each in sweep.trials if each.setting.alone]),
        "every step": ("o", [each for each in sweep.trials if each.setting.threshold is None]),
        "threshold": ("^", [each for each in sweep.trials if each.setting.threshold]),
    }
    for color, (label, (marker, trials)) in enumerate(kinds.items()):
        for dropped in (False, True):
            part = [each for each in trials if each.dropped == dropped]
            name = f"{label}, dropped early (fewer questions)" if dropped else label
            if part:
                axes.scatter(
                    *_places(part),
                    marker=marker,
                    edgecolors=f"C{color}",
                    facecolors="none" if dropped else f"C{color}",
                    alpha=0.4 if dropped else 1,
                    label=name,
                )
    axes.plot(*_places(sweep.front), color="black", linewidth=1, zorder=0, label="best at its cost")
    for trial in sweep.front:
        axes.annotate(
            trial.setting.label,
            (trial.cost.evaluations, 100 * trial.score.value),
            fontsize=7,
            parse_math=False,
            xytext=(4, 4),
            textcoords="offset points",
        )
    axes.set_xlabel("evaluations of members per answer: one for each member and step")
    axes.set_ylabel("score on the half on which settings are chosen, of 100")
    axes.legend(fontsize=8)
    try:
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise EvaluationError(f"cannot write the plot {path}: {error.strerror or error}") from error


def _places(trials: Sequence[Trial]) -> tuple[list[float], list[float]]:
    return [each.cost.evaluations for each in trials], [100 * each.score.value for each in trials]
