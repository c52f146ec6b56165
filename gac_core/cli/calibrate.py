"""``gac calibrate``: finds weights, temperatures and a threshold on questions with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gac_core.calibration.calibrate import Goal, Outcome, calibrate
from gac_core.calibration.diagrams import write_diagrams
from gac_core.calibration.temperature import GRID
from gac_core.cli import evaluation_options as options
from gac_core.cli.errors import reported
from gac_core.cli.evaluation_inputs import EvaluationProgress, configuration, load_tasks, tables_console
from gac_core.cli.files import make_folder, write_text

FEW = 100
"""Questions below which a calibration warns."""


def calibration(
    models: options.Models,
    data: options.Data,
    out: Annotated[Path, typer.Option(help="The calibration to write, YAML.")] = Path("calibration.yaml"),
    metric: options.Metrics = None,
    form: options.Form = "chat",
    instruction: options.Instruction = None,
    shots: options.Shots = None,
    max_tokens: options.MaxTokens = None,
    gate: Annotated[str | None, typer.Option(help="Gate. Default: the member that answers best alone.")] = None,
    accuracy: Annotated[
        float | None,
        typer.Option(help="Accuracy that the threshold shall keep. Default: that of every step.", min=0, max=1),
    ] = None,
    share: Annotated[
        float | None, typer.Option(help="Instead: share of steps to ensemble at most, such as 0.25.", min=0, max=1)
    ] = None,
    limit: options.Limit = None,
    dtype: options.Dtype = None,
    batch: options.Batch = None,
    results: Annotated[
        Path | None, typer.Option(help="Answers, JSON lines; a run with the same file continues.")
    ] = None,
    diagrams: Annotated[Path | None, typer.Option(help="Folder for reliability diagrams (PNG and HTML).")] = None,
) -> None:
    """Find weights, temperatures and a threshold for an ensemble, and which members hurt."""
    with reported("calibrate"):
        tasks = load_tasks(data, form, instruction, metric, shots, max_tokens, None, limit)
        config = configuration(models, dtype, batch)
        goal = Goal(accuracy, share, gate)
        make_folder("--out", out.parent)
        with EvaluationProgress() as progress:
            outcome = calibrate(config, tasks, goal, progress.reached, results)
        write_text("--out", out, outcome.calibration.to_yaml())
        show(outcome, tables_console(140))
        typer.echo(f"\nwritten: {out} (load the ensemble with calibration: {out})")
        if diagrams is not None:
            typer.echo(f"written: {', '.join(map(str, write_diagrams(outcome.reliability, diagrams)))}")


def show(outcome: Outcome, console: Console) -> None:
    """Prints what was found, in a table and in words."""
    measured = ("nats per token", "nats with temperature", "ECE", "ECE with temperature", "score alone")
    table = Table("member", "weight", "temperature", *measured)
    for name, member in outcome.calibration.members.items():
        fitted = outcome.fit.temperatures[name]
        errors = (outcome.unscaled.get(name), outcome.scaled.get(name))
        table.add_row(
            name,
            f"{member.weight:.3f}{' (hurts)' if member.hurts else ''}",
            f"{member.temperature:g}",
            f"{fitted.before:.3f}",
            f"{fitted.after:.3f}",
            *("-" if each is None else f"{each.ece:.3f}" for each in errors),
            f"{outcome.alone[name]:.1%}",
        )
    console.print(table)
    for line in summary(outcome):
        console.print(line, markup=False, highlight=False)


def summary(outcome: Outcome) -> list[str]:
    """Returns what was found, in sentences."""
    mixture = outcome.fit.mixture
    lines = [
        f"Right answers have a negative log-likelihood of {mixture.chosen:.3f} nats per token with these weights, "
        f"{mixture.equal:.3f} with equal weights, and {min(mixture.alone.values()):.3f} with the best member alone "
        "(second half of the questions)."
    ]
    if mixture.chosen > mixture.equal:
        lines.append(
            "On that half equal weights are better: the first half has too few questions to choose weights on."
        )
    lines += [f"The ensemble is better without {name}: its weight is 0." for name in mixture.hurts]
    lines += [*few_questions(outcome), *temperatures_at_bounds(outcome)]
    found = outcome.threshold
    best = max(outcome.alone, key=lambda name: outcome.alone[name])
    if found is None:
        return [*lines, f"One member has all the weight: do not ensemble. The best one alone is {best}."]
    lines.append(
        f"Gate {outcome.gate} at {found.value:g}: {found.report.score:.1%} with {found.report.share:.1%} of the steps "
        f"ensembled; every step {found.every_step.score:.1%}; {best} alone {outcome.alone[best]:.1%} "
        f"(second half, {found.report.questions} questions)."
    )
    if max(found.report.score, found.every_step.score) < outcome.alone[best]:
        lines.append(f"On these questions {best} alone is better than the ensemble.")
    return lines


def few_questions(outcome: Outcome) -> list[str]:
    """Returns a warning if there are few questions, or few right answers to them."""
    count = outcome.calibration.made_from.questions
    every = [each for each in outcome.reliability if not each.domain]
    right = max((round(each.accuracy * each.count) for each in every), default=0)
    if right == 0:
        return [
            f"Warning: no member and no ensemble had a right answer to these {count:,} questions, so that the "
            "threshold and the reliability mean nothing. Another metric may accept the answers (--metric, for example "
            "contains for answers in sentences), or another prompt (--form, --instruction, --shots) suit the models."
        ]
    if min(count, 2 * right) < FEW:
        return [
            f"Warning: {count:,} questions with at most {right:,} right answers are few to choose weights, "
            f"temperatures and a threshold on; give more, {FEW} or more."
        ]
    return []


def temperatures_at_bounds(outcome: Outcome) -> list[str]:
    """Returns a warning for each member whose temperature is an end of the range that is searched."""
    low, high = GRID[0], GRID[-1]
    return [
        f"Warning: the temperature {own.value:g} of {name} is an end of the range that is searched ({low:g} to "
        f"{high:g}): it gives the accepted answers little probability in this form. Check the prompt (--form, "
        "--instruction)."
        for name, own in outcome.fit.temperatures.items()
        if not low < own.value < high
    ]
