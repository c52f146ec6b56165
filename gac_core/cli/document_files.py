"""Documents that ``--document`` and ``--documents`` name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from gac_core.cli.files import read_text
from gac_core.errors import RequestError, quote
from gac_core.voices import Document, as_documents

_LINES = "--documents"


def read_documents(files: Sequence[Path] | None, lines: Path | None) -> list[Document] | None:
    """Returns the documents of both options; None without either.

    Args:
        files: Text files with one document each, whose id is the file's path.
        lines: A file of JSON lines: texts, or objects with the fields of `Document`. Ids by default are
            ``FILE:LINE``. Empty lines are skipped.

    Raises:
        RequestError: A file cannot be read, is empty, or has a line of another form.
    """
    if not files and lines is None:
        return None
    found = [_of_file(path) for path in files or ()]
    return found if lines is None else found + _of_lines(lines)


def _of_file(path: Path) -> Document:
    text = read_text("--document", path)
    if not text:
        raise RequestError(f"{quote(str(path))} (--document) is empty; give a file with a text")
    return Document(text, str(path))


def _of_lines(path: Path) -> list[Document]:
    text = read_text(_LINES, path)
    found = [_of_line(path, number, line) for number, line in enumerate(text.split("\n"), 1) if line.strip()]
    if not found:
        raise RequestError(f"{quote(str(path))} ({_LINES}) is empty; give at least one line of JSON")
    return found


def _of_line(path: Path, number: int, line: str) -> Document:
    try:
        value = json.loads(line)
        values = value if isinstance(value, Mapping) else {"text": value}
        given = {name: each for name, each in values.items() if each is not None}
        [document] = as_documents([{"id": f"{path.name}:{number}", **given}])
    except (ValueError, RecursionError, RequestError) as error:
        raise RequestError(f"line {number} of {quote(str(path))} ({_LINES}): {error}") from error
    return document
