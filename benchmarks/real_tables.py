"""Tables of evaluations of real models."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from rich.console import Console
from rich.table import Table

from gac_core.evaluation.report import table_cells
from gac_core.evaluation.results import Results
from gac_core.evaluation.settings import Setting
from gac_core.evaluation.summary import tables


def print_tables(
    results: Results,
    settings: Sequence[Setting],
    names: Sequence[str],
    keys: Collection[tuple[str, str]] | None = None,
    width: int = 170,
) -> None:
    """Prints a table of each task, and one of all.

    Args:
        results: The answers.
        settings: The settings, all of which have answered the questions.
        names: Names of the members.
        keys: Only questions with these tasks and ids. Default: all in the results.
        width: Number of columns.
    """
    for found in tables(results, settings, keys):
        head, *rows = table_cells(found, names)
        table = Table(*head, title=f"{found.task}: {found.questions} questions; best member alone: {found.best}")
        for row in rows:
            table.add_row(*row)
        Console(width=width).print(table)
