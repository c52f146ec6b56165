"""Options that ``gac chat`` and ``gac trace`` share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from gac_core.cli.evaluation_options import Dtype, Models

__all__ = [
    "Combine",
    "CombineDocuments",
    "DocumentFiles",
    "DocumentLines",
    "Dtype",
    "Gate",
    "Models",
    "Plain",
    "Temperature",
    "Threshold",
    "Weights",
]

Threshold = Annotated[
    str | None, typer.Option(help="0 to 1: the gate decides alone at or above it; off: no threshold.")
]
Gate = Annotated[str | None, typer.Option(help="Name of the gate.")]
Weights = Annotated[str | None, typer.Option(help="For example 1:2:4, one number per member; perplexity; or auto.")]
Combine = Annotated[str | None, typer.Option(help="How distributions are combined.")]
DocumentFiles = Annotated[
    list[Path] | None,
    typer.Option(
        "--document", metavar="FILE", help="Text file that members read in place of {document}; may be repeated."
    ),
]
DocumentLines = Annotated[
    Path | None,
    typer.Option(
        "--documents", metavar="FILE.jsonl", help="The same for JSON lines: texts, or objects with text, id and score."
    ),
]
CombineDocuments = Annotated[
    str | None, typer.Option(help="How distributions of documents are combined: mean, contrast or confidence.")
]
Temperature = Annotated[float, typer.Option(help="0 is greedy.", min=0)]
Plain = Annotated[
    bool, typer.Option("--plain", help="Members without a chat template get a plain one, for base models.")
]
