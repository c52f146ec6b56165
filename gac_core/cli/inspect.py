"""``gac inspect``: compares the tokenizers of models."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from gac_core.cli.errors import reported
from gac_core.cli.files import read_text

if TYPE_CHECKING:
    from gac_core.inspection import Report


def inspect(
    models: Annotated[list[str], typer.Argument(help="Folders or hub names. Only tokenizers and configs are loaded.")],
    words: Annotated[
        Path | None,
        typer.Option(help="Text or word list whose tokenization is compared. Default: common English words."),
    ] = None,
    text: Annotated[
        Path | None,
        typer.Option(help="Text on which tokens are counted that a member needs several ids for. Default: the words."),
    ] = None,
    count: Annotated[int, typer.Option(help="Number of most frequent words.", min=1)] = 5000,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Compare the tokenizers of models: shared tokens, words tokenized alike, and warnings."""
    from gac_core.inspection import common_words, load, words_of
    from gac_core.inspection import inspect as compare

    with reported("inspect"):
        chosen = common_words(count) if words is None else words_of(read_text("--words", words), count)
        given = None if text is None else read_text("--text", text)
        report = compare([load(model) for model in models], chosen, given)
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1, ensure_ascii=False))
    else:
        show(report, Console())


def show(report: Report, console: Console) -> None:
    """Prints a report as tables."""
    console.print(
        f"union of {report.union_size:,} tokens, {report.shared_tokens:,} in every vocabulary\n", highlight=False
    )
    table = Table("")
    rows: dict[str, list[str]] = {}
    for member in report.members:
        table.add_column(member.name)
        values = {
            "spelling": member.kind,
            "tokens / rows of the output head": f"{member.tokens:,} / {member.rows:,}",
            "in all other vocabularies": f"{member.shared:.1%}",
            "produced by its own encoder": f"{member.reachable:.1%}",
            "parts of characters": f"{member.partial:,}",
            "duplicate tokens": f"{member.duplicates:,}",
            "end-of-text tokens": " ".join(member.ends) or "none",
            "context": f"{member.context:,}" if member.context else "unknown",
            "chat template": "yes" if member.chat_template else "no",
            "bytes it cannot encode": _hexadecimal(member.unwritable_bytes),
            "tokens of others that need several ids / 1,000 bytes": f"{member.several_ids:.1f}",
        }
        for key, value in values.items():
            rows.setdefault(key, []).append(value)
    for key, cells in rows.items():
        table.add_row(key, *cells)
    console.print(table)
    for pair, share in report.agreement.items():
        console.print(f"{pair}: {share:.1%} of {report.words:,} words tokenized alike", highlight=False)
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)


def _hexadecimal(values: Sequence[int], most: int = 6) -> str:
    """Returns the number of bytes and the first of them."""
    if not values:
        return "none"
    shown = " ".join(f"{value:02X}" for value in values[:most])
    return f"{len(values)}: {shown}" + (" ..." if len(values) > most else "")
