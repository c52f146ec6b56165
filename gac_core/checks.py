"""Checks of single values: each returns the value as a plain Python one, or raises an error that names it.

Every function takes the error's class first, then what the value is called in the message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

from gac_core.errors import GaCError, quote

Kind = type[GaCError]

_MAX_INT = 2**63 - 1


def check_int(error: Kind, what: str, value: object, low: int = -_MAX_INT, high: int = _MAX_INT) -> int:
    """Returns a whole number from ``low`` to ``high``; by default, what 64 bits hold."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise error(f"{what} must be a whole number, not {quote(value)}")
    if not low <= value <= high:
        raise error(f"{what} must be {_limits(low, high)}, not {quote(value)}")
    return int(value)


def check_number(
    error: Kind, what: str, value: object, low: float, high: float = math.inf, low_open: bool = False
) -> float:
    """Returns a finite number from ``low`` (or above it) to ``high`` as a float."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise error(f"{what} must be a number, not {quote(value)}")
    try:
        converted = float(value)
    except OverflowError:
        converted = math.inf
    above = converted > low if low_open else converted >= low
    # NaN compares false with everything.
    if not above or not converted <= high or math.isinf(converted):
        raise error(f"{what} must be {_limits(low, high, low_open)}, not {quote(value)}")
    return converted


def _limits(low: float, high: float, low_open: bool = False) -> str:
    limits = ("above " if low_open else "at least ") + f"{low}"
    return limits + (f" and at most {high}" if high < _MAX_INT else " and finite" if high == math.inf else "")


def check_text(error: Kind, what: str, value: object, remedy: str = "") -> str:
    """Returns a string that is not empty and has no half of a surrogate pair, which no UTF-8 can hold."""
    if not isinstance(value, str) or not value:
        raise error(f"{what} must be a string that is not empty, not {quote(value)}{remedy and '; ' + remedy}")
    plain = str.__str__(value)
    try:
        plain.encode()
    except UnicodeEncodeError as bad:
        raise error(
            f"{what} holds {plain[bad.start]!r}, half of a surrogate pair and no character: {quote(plain)}; replace it"
        ) from bad
    return plain


def check_flag(error: Kind, what: str, value: object) -> bool:
    """Returns True or False."""
    if not isinstance(value, bool):
        raise error(f"{what} must be True or False, not {quote(value)}")
    return value


def check_option(error: Kind, what: str, value: object, options: Sequence[str]) -> str:
    """Returns one of some strings."""
    if not isinstance(value, str) or value not in options:
        raise error(f"{what} must be one of {', '.join(options)}, not {quote(value)}")
    return str.__str__(value)


def check_tree(error: Kind, what: str, value: object, max_values: int = 100_000, max_chars: int = 2**23) -> None:
    """Raises if a tree of mappings and lists is too large, also where its parts are the same objects over and over.

    Args:
        error: The error's class.
        what: What the value is called.
        value: The tree.
        max_values: How many keys and values it may hold. Default 100,000.
        max_chars: How many characters they may have together. Default 8 Mi.
    """
    values = chars = 0
    waiting = [value]
    while waiting:
        item = waiting.pop()
        values += 1
        if isinstance(item, (str, bytes)):
            chars += len(item)
        elif isinstance(item, Mapping):
            waiting += [*item.keys(), *item.values()]
        elif isinstance(item, (list, tuple)):
            waiting += item
        if values + len(waiting) > max_values or chars > max_chars:
            raise error(f"{what} must hold at most {max_values} values and {max_chars} characters; make it smaller")


def check_list(error: Kind, what: str, value: object, of: str) -> tuple[Any, ...]:
    """Returns a list, tuple or set as a tuple; strings, bytes and mappings are refused.

    Args:
        error: The error's class.
        what: What the value is called.
        value: The value.
        of: What it must be a list of, in the plural.
    """
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, (Sequence, Set)):
        raise error(f"{what} must be a list of {of}, not {quote(value)}")
    return tuple(value)
