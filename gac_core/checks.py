"""Validation of single values.

Each function returns the value as a plain Python object or raises an error that names the field and the value. The
first argument is the class of the error, the second the field as it appears in the message.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

from gac_core.errors import GaCError, quote

Kind = type[GaCError]

_MAX_INT = 2**63 - 1


def check_int(error: Kind, what: str, value: object, low: int = -_MAX_INT, high: int = _MAX_INT) -> int:
    """Returns an integer from ``low`` to ``high``, both inclusive; the default is the range of int64."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise error(f"{what} must be an integer, not {quote(value)}")
    if not low <= value <= high:
        raise error(f"{what} must be {_limits(low, high)}, not {quote(value)}")
    return int(value)


def check_number(
    error: Kind, what: str, value: object, low: float, high: float = math.inf, low_open: bool = False
) -> float:
    """Returns a finite float from ``low`` (exclusive with ``low_open``) to ``high`` (inclusive)."""
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
    """Returns a non-empty string that UTF-8 can encode, that is, one without lone surrogates.

    Args:
        error: Class of the error.
        what: The field.
        value: The value.
        remedy: What to do instead, appended to the message. Default: nothing.
    """
    if not isinstance(value, str) or not value:
        raise error(f"{what} must be a non-empty string, not {quote(value)}{remedy and '; ' + remedy}")
    plain = str.__str__(value)
    try:
        plain.encode()
    except UnicodeEncodeError as bad:
        raise error(
            f"{what} contains {plain[bad.start]!r}, half of a surrogate pair, which UTF-8 cannot encode, "
            f"in {quote(plain)}; replace it"
        ) from bad
    return plain


def check_flag(error: Kind, what: str, value: object) -> bool:
    """Returns a bool."""
    if not isinstance(value, bool):
        raise error(f"{what} must be True or False, not {quote(value)}")
    return value


def check_option(error: Kind, what: str, value: object, options: Sequence[str]) -> str:
    """Returns a string that is one of ``options``."""
    if not isinstance(value, str) or value not in options:
        known = ", ".join(quote(option) for option in options)
        raise error(f"{what} must be {'one of ' if len(options) > 1 else ''}{known}, not {quote(value)}")
    return str.__str__(value)


def check_tree(error: Kind, what: str, value: object, max_values: int = 100_000, max_chars: int = 2**23) -> None:
    """Raises if a tree of mappings and lists is too large; objects that occur several times count each time.

    Args:
        error: Class of the error.
        what: The field.
        value: The tree.
        max_values: Largest number of keys and values. Default 100,000.
        max_chars: Largest total length of its strings, in characters. Default 8 Mi.
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
            raise error(f"{what} must contain at most {max_values} values and {max_chars} characters; make it smaller")


def count_mismatch(values: Sequence[object], members: int) -> str:
    """Returns the message for weights that are not one per member."""
    count = f"{len(values)} value{'' if len(values) == 1 else 's'}"
    ensemble = "there is 1 member" if members == 1 else f"there are {members} members"
    return f"weights has {count}, {quote(list(values))}, but {ensemble}; give one per member"


def check_list(error: Kind, what: str, value: object, of: str, remedy: str = "") -> tuple[Any, ...]:
    """Returns a list, tuple or set as a tuple; strings, bytes and mappings raise.

    Args:
        error: Class of the error.
        what: The field.
        value: The value.
        of: Kind of the elements, in the plural, for the message.
        remedy: What to do instead, appended to the message. Default: nothing.
    """
    if isinstance(value, (str, bytes, bytearray)) or not isinstance(value, (Sequence, Set)):
        raise error(f"{what} must be a list of {of}, not {quote(value)}{remedy and '; ' + remedy}")
    return tuple(value)
