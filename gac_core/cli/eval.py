"""``gac eval``: compares members, ensembles and settings on questions with known answers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table as RichTable

from gac_core.cli import evaluation_options as options
from gac_core.cli.errors import reported
from gac_core.cli.evaluation_inputs import EvaluationProgress, configuration, load_tasks, tables_console
from gac_core.cli.files import make_folder, write_text
from gac_core.ensemble import Ensemble
from gac_core.evaluation.comparing import THRESHOLDS, EvaluationPlan, compare_settings
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.header import header_of
from gac_core.evaluation.questions import Question
from gac_core.evaluation.recommend import recommend
from gac_core.evaluation.report import (
    HEADS,
    WRONG_HEADS,
    Block,
    as_html,
    as_markdown,
    report,
    without_recommendation,
)
from gac_core.evaluation.results import Results
from gac_core.evaluation.run import check_configured
from gac_core.evaluation.settings import Setting, parse_source
from gac_core.evaluation.summary import tables


def evaluate(
    models: options.Models,
    data: options.Data,
    metric: options.Metrics = None,
    form: options.Form = "chat",
    instruction: options.Instruction = None,
    shots: options.Shots = None,
    max_tokens: options.MaxTokens = None,
    stop: options.Stop = None,
    weights: options.Weights = None,
    threshold: options.Thresholds = None,
    gate: options.Gate = None,
    combine: Annotated[str | None, typer.Option(help="Rule that combines distributions. Default: as configured.")] = (
        None
    ),
    gate_rule: Annotated[str | None, typer.Option(help="Measure of the gate's certainty. Default: as configured.")] = (
        None
    ),
    baseline: Annotated[bool, typer.Option(help="Compare with samples of the best member (self-consistency).")] = True,
    limit: options.Limit = None,
    half: Annotated[str | None, typer.Option(help="choose or report: only the questions of this half.")] = None,
    dtype: options.Dtype = None,
    batch: options.Batch = None,
    cache: Annotated[bool, typer.Option(help="Reuse prompts between settings; without, times are comparable.")] = True,
    count_errors: options.CountErrors = False,
    out: options.Out = None,
    report_path: Annotated[Path | None, typer.Option("--report", help="Report to write: .md or .html.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the tables and the recommendation as JSON.")] = False,
) -> None:
    """Measure on your questions whether an ensemble is better than its best member, and which settings to use."""
    with reported("eval"):
        _check_report(report_path)
        tasks = load_tasks(data, form, instruction, metric, shots, max_tokens, stop, limit, half)
        config = configuration(models, dtype, batch, cache)
        plan = EvaluationPlan(
            tuple(parse_source(each, config.names) for each in weights or ()) or (None,),
            THRESHOLDS if threshold is None else tuple(threshold),
            gate,
            combine,
            gate_rule,
            baseline,
        )
        check_configured(config, plan.possible(config.names))
        results = Results(header_of(config, tasks), out)
        with Ensemble.from_config(config) as ensemble, EvaluationProgress() as progress:
            settings = compare_settings(ensemble, tasks, plan, results, progress.began, progress.answered, count_errors)
        questions = {question.key: question for task in tasks for question in task.questions.questions}
        show(results, settings, cache, report_path, as_json, questions)


def _check_report(path: Path | None) -> None:
    if path is not None and path.suffix not in (".md", ".html"):
        raise EvaluationError(f"the report must be a .md or .html file, not {path}")
    if path is not None:
        make_folder("--report", path.parent)


def show(
    results: Results,
    settings: Sequence[Setting],
    cached: bool,
    path: Path | None,
    as_json: bool,
    questions: Mapping[tuple[str, str], Question],
) -> None:
    """Prints the tables and the recommendation, and writes the report."""
    made = tables(results, settings, questions.keys())
    advice = (
        recommend(results, settings, keys=questions.keys())
        if any(setting.is_ensemble for setting in settings)
        else None
    )
    blocks = report(results, made, advice, cached, questions)
    if path is not None:
        text = as_html(blocks) if path.suffix == ".html" else as_markdown(blocks)
        write_text("--report", path, text)
    if as_json:
        values: dict[str, Any] = {
            "tables": [table.as_dict() for table in made],
            "recommendation": None if advice is None else asdict(advice),
        }
        typer.echo(json.dumps(values, indent=1, ensure_ascii=False))
    else:
        text = " ".join(without_recommendation(made)) if advice is None else advice.text
        print_blocks(blocks, text, tables_console(160))


def print_blocks(blocks: Sequence[Block], advice: str, console: Console) -> None:
    """Prints the tables of results, answers where none is right, and the recommendation at the end."""
    for block in blocks:
        if block.table and block.table[0][0] in (HEADS[0], WRONG_HEADS[0]):
            table = RichTable(*block.table[0], title=block.text, title_justify="left")
            for row in block.table[1:]:
                table.add_row(*row)
            console.print(table)
    console.print(f"\n{advice}", markup=False, highlight=False)
