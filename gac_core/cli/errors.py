"""How commands report errors."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from gac_core.errors import GaCError


@contextmanager
def reported(command: str) -> Iterator[None]:
    """Prints an error of this library on stderr and exits with status 2."""
    try:
        yield
    except GaCError as error:
        typer.echo(f"gac {command}: {error}", err=True)
        raise typer.Exit(2) from error
