"""Files that options of commands name."""

from __future__ import annotations

from pathlib import Path

from gac_core.errors import RequestError, quote


def read_text(option: str, path: Path) -> str:
    """Returns the content of a text file.

    Args:
        option: The option that names it, for errors.
        path: The file.

    Raises:
        RequestError: It cannot be read, or is not UTF-8.
    """
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise RequestError(f"cannot read {quote(str(path))} ({option}): {reason}; give a text file in UTF-8") from error


def make_folder(option: str, folder: Path) -> None:
    """Makes a folder, if there is none, before what it shall hold is computed.

    Args:
        option: The option that names it, for errors.
        folder: The folder.

    Raises:
        RequestError: It cannot be made.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RequestError(
            f"cannot make the folder {quote(str(folder))} ({option}): {error.strerror}; give another one"
        ) from error


def write_text(option: str, path: Path, text: str) -> None:
    """Writes a text file in UTF-8.

    Args:
        option: The option that names it, for errors.
        path: The file.
        text: Its content.

    Raises:
        RequestError: It cannot be written.
    """
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(
            f"cannot write {quote(str(path))} ({option}): {error.strerror}; give another file"
        ) from error
