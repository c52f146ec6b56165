"""Options that ``gac eval`` and ``gac sweep`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Models = Annotated[list[str], typer.Argument(help="A YAML configuration of an ensemble, or several models.")]
Data = Annotated[list[Path], typer.Option(help="JSON lines with questions and answers; may be repeated.")]
Metrics = Annotated[
    list[str] | None,
    typer.Option(
        help="exact, f1, contains, choice, number, regex:PATTERN or module:function; the first one counts. "
        "FILE=METRIC sets it for one data file. Default: one that fits the questions."
    ),
]
Form = Annotated[
    str, typer.Option(help="chat (each member's chat template), plain (text, for base models) or raw (the question).")
]
Stop = Annotated[list[str] | None, typer.Option(help="Strings that end an answer. Default: those of the form.")]
Instruction = Annotated[str | None, typer.Option(help="System message, or first paragraph of plain text.")]
Shots = Annotated[list[str] | None, typer.Option(help="Examples before each question; FILE=N for one data file.")]
MaxTokens = Annotated[list[str] | None, typer.Option(help="Tokens of an answer at most; FILE=N for one data file.")]
Weights = Annotated[list[str] | None, typer.Option(help="Such as 1:2:4, perplexity or auto; may be repeated.")]
Thresholds = Annotated[list[float] | None, typer.Option(help="May be repeated. Default: 0.5, 0.7, 0.9.")]
Gate = Annotated[str | None, typer.Option(help="Gate of the thresholds. Default: the best member so far.")]
Limit = Annotated[int | None, typer.Option(help="Questions of each file at most: a fixed sample.", min=1)]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, bfloat16 or float16.")]
Batch = Annotated[int | None, typer.Option(help="Requests at once. Default: as configured, or 16.", min=1)]
CountErrors = Annotated[
    bool, typer.Option("--count-errors", help="Count questions that fail as wrong instead of stopping.")
]
Out = Annotated[Path | None, typer.Option(help="Results, JSON lines; a run with the same file continues.")]
