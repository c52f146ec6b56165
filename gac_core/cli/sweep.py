"""``gac sweep``: searches for weights, a rule, a gate and a threshold on questions with known answers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from gac_core.cli import evaluation_options as options
from gac_core.cli.errors import reported
from gac_core.cli.evaluation_inputs import EvaluationProgress, configuration, load_tasks, tables_console
from gac_core.cli.files import write_text
from gac_core.ensemble import Ensemble
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.header import header_of
from gac_core.evaluation.pareto import as_csv, plot
from gac_core.evaluation.recommend import described
from gac_core.evaluation.results import Results
from gac_core.evaluation.run import check_configured
from gac_core.evaluation.settings import parse_weights
from gac_core.evaluation.sweep import Grid, Sweep, check_several, configured_as, default_weights
from gac_core.evaluation.sweep import sweep as search

THRESHOLDS = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95)


def sweep(
    models: options.Models,
    data: options.Data,
    metric: options.Metrics = None,
    form: options.Form = "chat",
    instruction: options.Instruction = None,
    shots: options.Shots = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    weights: Annotated[
        list[str] | None,
        typer.Option(help="Such as 1:2:4; may be repeated. Default: combinations of 0, 1 and 2."),
    ] = None,
    combine: Annotated[list[str] | None, typer.Option(help="May be repeated. Default: as configured.")] = None,
    gate: Annotated[list[str] | None, typer.Option(help="May be repeated. Default: every member.")] = None,
    gate_rule: Annotated[list[str] | None, typer.Option(help="May be repeated. Default: as configured.")] = None,
    threshold: Annotated[
        list[float] | None, typer.Option(help="May be repeated. Default: 0.3, 0.5, 0.7, 0.8, 0.9, 0.95.")
    ] = None,
    grid: Annotated[bool, typer.Option("--grid", help="All combinations on all questions, without stopping early.")] = (
        False
    ),
    limit: options.Limit = None,
    dtype: options.Dtype = None,
    batch: options.Batch = None,
    out: Annotated[
        Path, typer.Option(help="Folder for results.jsonl, sweep.csv, pareto.png and best.yaml; a run continues there.")
    ] = Path("sweep"),
) -> None:
    """Search for the best settings on one half of the questions; report them on the other half."""
    with reported("sweep"):
        if out.exists() and not out.is_dir():
            raise EvaluationError(f"--out must be a folder, which gets several files; {out} is a file")
        tasks = load_tasks(data, form, instruction, metric, shots, max_tokens, stop, limit)
        config = configuration(models, dtype, batch)
        names = config.names
        check_several(names)
        values = Grid(
            tuple(parse_weights(each, names) for each in weights or ()) or default_weights(len(names)),
            tuple(combine or (None,)),
            tuple(gate or names),
            tuple(gate_rule or (None,)),
            tuple(threshold or THRESHOLDS),
        )
        check_configured(config, values.possible(names))
        results = Results(header_of(config, tasks), out / "results.jsonl")
        with Ensemble.from_config(config) as ensemble, EvaluationProgress() as progress:
            found = search(ensemble, tasks, values, results, grid, progress.began, progress.answered)
        best = configured_as(config, found.best).to_yaml()
        write_text("--out", out / "sweep.csv", as_csv(found))
        write_text("--out", out / "best.yaml", f"# {described(found.best)}\n{best}")
        show(found, tables_console(160))
        plot(found, out / "pareto.png")


def show(found: Sweep, console: Console) -> None:
    """Prints the settings that are best at their cost, and the recommendation."""
    dropped = sum(trial.dropped for trial in found.trials)
    title = (
        f"{len(found.trials)} settings on one half of the questions, {dropped} of them dropped early; the best at "
        "their cost:"
    )
    table = Table(
        "answered by", "score", "ensembled steps", "evaluations", "ms per answer", title=title, title_justify="left"
    )
    for trial in found.front:
        score = trial.score
        table.add_row(
            trial.setting.label,
            f"{score.value:.1%} [{score.low:.1%}, {score.high:.1%}]",
            f"{trial.cost.share_ensembled:.0%}",
            f"{trial.cost.evaluations:.1f}",
            f"{1000 * trial.cost.seconds:,.0f}",
        )
    console.print(table)
    console.print(f"\n{found.recommendation.text}", markup=False, highlight=False)
