"""``gac calibrate-documents``: fits how likely an answer is not in its documents."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gac_core.calibration.absence import FOLDS, AbsenceReport, cross_validate, fit_absence, measure
from gac_core.calibration.document_questions import PROMPT, check_form, read_document_questions
from gac_core.cli import evaluation_options as options
from gac_core.cli.errors import reported
from gac_core.cli.evaluation_inputs import EvaluationProgress, configuration
from gac_core.cli.files import make_folder, read_text, write_text
from gac_core.doubt import AbsenceCalibration
from gac_core.ensemble import Ensemble
from gac_core.sampling import SamplingParams

FEW = 100
"""Answers below which a calibration warns."""


def calibration_of_documents(
    models: options.Models,
    data: Annotated[
        Path,
        typer.Option(
            help='JSON lines {"question": ..., "documents": [...], "answer_in": INDEX or null}; a document is a text, '
            'or {"text": ..., "score": ...}.'
        ),
    ],
    out: Annotated[Path, typer.Option(help="The calibration to write, JSON.")] = Path("absence.json"),
    prompt: Annotated[
        Path | None, typer.Option(help="A text file with {document} and {question}, as in the prompts to come.")
    ] = None,
    chat: Annotated[
        bool, typer.Option(help="Send prompts as a user's message, by the members' chat templates, or as they are.")
    ] = True,
    max_tokens: Annotated[int, typer.Option(help="Tokens of an answer at most.", min=1)] = 48,
    combine_documents: Annotated[
        str | None, typer.Option(help="How documents are combined. Default: as configured, or mean.")
    ] = None,
    folds: Annotated[int, typer.Option(help="Parts that are held out in turn for the report.", min=2)] = FOLDS,
    limit: Annotated[int | None, typer.Option(help="Questions at most, from the beginning.", min=1)] = None,
    dtype: options.Dtype = None,
    batch: options.Batch = None,
) -> None:
    """Fit how likely an answer is not in its documents, on questions with and without the answering document."""
    with reported("calibrate-documents"):
        form = PROMPT if prompt is None else read_text("--prompt", prompt).strip()
        check_form(form)
        questions = read_document_questions(data, limit)
        config = configuration(models, dtype, batch)
        make_folder("--out", out.parent)
        with EvaluationProgress() as progress, Ensemble.from_config(config) as ensemble:
            params = SamplingParams(max_tokens=max_tokens, combine_documents=combine_documents)
            samples = measure(ensemble, questions, form, chat, params, progress.reached)
        report = cross_validate(samples, folds)
        found = fit_absence(samples)
        write_text("--out", out, found.to_json())
    for line in summary(report, found, folds):
        typer.echo(line)
    typer.echo(f"written: {out} (load the ensemble with absence: {out})")


def summary(report: AbsenceReport, found: AbsenceCalibration, folds: int) -> list[str]:
    """Returns what was found, in sentences."""
    base = report.base_rate
    lines = [
        f"{report.answers:,} answers to {found.questions:,} questions; the documents of {base:.0%} lack the answer.",
        f"Held out in {folds} folds: AUROC {report.auroc:.3f} (chance 0.5), Brier score {report.brier:.3f} "
        f"({base * (1 - base):.3f} without a prediction), calibration error {report.ece:.3f}.",
        "Log odds of absence per standard deviation: "
        + ", ".join(f"{name} {scale.coefficient:+.2f}" for name, scale in found.features.items()),
    ]
    if report.citation_accuracy is not None:
        lines.append(f"Where the documents contain the answer, {report.citation_accuracy:.1%} cite the right document.")
    if report.answers < FEW:
        lines.append(f"Warning: {report.answers} answers are few; give questions for {FEW} or more.")
    return lines
