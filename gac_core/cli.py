"""The ``gac`` command line."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

try:
    import typer
    from rich.console import Console
    from rich.table import Table
except ImportError as error:  # pragma: no cover - depends on what is installed
    raise SystemExit("the gac command needs typer and rich: pip install 'gac-ensemble[inspect]'") from error

from gac_core.errors import GaCError
from gac_core.inspection import Report, common_words, load, words_of
from gac_core.inspection import inspect as compare

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def gac() -> None:
    """Several open language models that answer as one."""


@app.command()
def inspect(
    models: Annotated[list[str], typer.Argument(help="Folders or hub names; only tokenizers and configs are read.")],
    words: Annotated[Path | None, typer.Option(help="Text or word list to compare cuts on.")] = None,
    text: Annotated[Path | None, typer.Option(help="Text to count commits of several ids on.")] = None,
    count: Annotated[int, typer.Option(help="How many of the most frequent words.", min=1)] = 5000,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tells how well the vocabularies of models fit each other."""
    try:
        chosen = common_words(count) if words is None else words_of(words.read_text(encoding="utf-8"), count)
        given = None if text is None else text.read_text(encoding="utf-8")
        report = compare([load(model) for model in models], chosen, given)
    except (GaCError, OSError, UnicodeDecodeError) as error:
        typer.echo(f"gac inspect: {error}", err=True)
        raise typer.Exit(2) from error
    if as_json:
        typer.echo(json.dumps(report.as_dict(), indent=1, ensure_ascii=False))
    else:
        show(report, Console())


def show(report: Report, console: Console) -> None:
    """Prints a report as tables."""
    console.print(f"union of {report.union_size:,} tokens, {report.shared_tokens:,} held by all\n", highlight=False)
    table = Table("")
    rows: dict[str, list[str]] = {}
    for member in report.members:
        table.add_column(member.name)
        values = {
            "spelling": member.kind,
            "tokens / rows of the head": f"{member.tokens:,} / {member.rows:,}",
            "held by all others": f"{member.shared:.1%}",
            "reached by its own encoder": f"{member.reachable:.1%}",
            "parts of characters": f"{member.partial:,}",
            "duplicates": f"{member.duplicates:,}",
            "ends of text": " ".join(member.ends) or "none",
            "context": f"{member.context:,}" if member.context else "unknown",
            "chat template": "yes" if member.chat_template else "no",
            "bytes it cannot write": _hexadecimal(member.unwritable_bytes),
            "commits of several ids / 1,000 bytes": f"{member.several_ids:.1f}",
        }
        for key, value in values.items():
            rows.setdefault(key, []).append(value)
    for key, cells in rows.items():
        table.add_row(key, *cells)
    console.print(table)
    for pair, share in report.agreement.items():
        console.print(f"{pair}: {share:.1%} of {report.words:,} words cut alike", highlight=False)
    for warning in report.warnings:
        console.print(f"warning: {warning}", style="yellow", markup=False, highlight=False)


def _hexadecimal(values: Sequence[int], most: int = 6) -> str:
    """How many bytes, and the first of them."""
    if not values:
        return "none"
    shown = " ".join(f"{value:02X}" for value in values[:most])
    return f"{len(values)}: {shown}" + (" ..." if len(values) > most else "")


if __name__ == "__main__":
    app()
