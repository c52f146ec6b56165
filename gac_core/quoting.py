"""Values and names in messages, limited in length."""

from __future__ import annotations

import reprlib
from collections.abc import Iterable
from typing import Any

MAX_NAMES = 20
_MAX_QUOTE = 160


class _Quoter(reprlib.Repr):
    """The limits of `quote`."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 3
        self.maxstring = self.maxother = 80

    def repr_int(self, x: Any, level: int) -> str:
        """Python cannot convert integers of more than a few thousand digits to text."""
        return repr(x) if x.bit_length() <= 128 else f"<an integer of {x.bit_length()} bits>"


_quoter = _Quoter()


def quote(value: object) -> str:
    """Returns the `repr` of a value, shortened for an error message; never raises."""
    try:
        text = _quoter.repr(value)
    except Exception:
        text = f"<a {type(value).__name__}>"
    return shorten(text, _MAX_QUOTE)


def shorten(text: str, limit: int = 400) -> str:
    """Returns a text, with its middle replaced by dots if it is longer than ``limit`` characters (default 400)."""
    return text if len(text) <= limit else f"{text[: limit * 2 // 3]} ... {text[-(limit // 3) :]}"


def listed(names: Iterable[object]) -> str:
    """Returns names separated by commas, at most 20 of them, each shortened."""
    names = list(names)
    rest = [f"and {len(names) - MAX_NAMES} more"] if len(names) > MAX_NAMES else []
    return ", ".join([*(shorten(str(name), 60) for name in names[:MAX_NAMES]), *rest])
