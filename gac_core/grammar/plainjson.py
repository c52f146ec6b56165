"""Copies of JSON values as plain Python values, checked against JSON and limits of size."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from typing import Any, NoReturn

from gac_core.errors import GaCError, quote, shorten

MAX_CHARACTERS = 4_000_000
MAX_VALUES = 200_000
MAX_DEPTH = 100


class PlainJson:
    """Copies one value.

    Args:
        error: The class of errors to raise.
        what: The name of the value in error messages.
    """

    def __init__(self, error: type[GaCError], what: str) -> None:
        self._error = error
        self._what = what
        self._values = 0
        self._characters = 0

    def read(self, text: str) -> Any:
        """Parses a JSON text; duplicate keys in an object are an error, too.

        Args:
            text: The text.

        Raises:
            GaCError: The text is not JSON, has duplicate keys, or exceeds a limit; of the class given.
        """
        if len(text) > MAX_CHARACTERS:
            raise self._error(f"{self._what} has {len(text)} characters, more than {MAX_CHARACTERS}; make it smaller")
        try:
            value = json.loads(text, object_pairs_hook=self._object)
        except RecursionError:
            raise self._error(f"{self._what} is nested more than {MAX_DEPTH} deep; {_FLATTER}") from None
        except ValueError as bad:
            raise self._error(f"{self._what} is not valid JSON: {shorten(str(bad))}: {quote(text)}") from bad
        return self.copy(value)

    def _object(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise self._error(f"{self._what} has the key {quote(twice)} twice in one object; remove one")
        return value

    def copy(self, value: Any, path: tuple[str, ...] = ()) -> Any:
        """Returns a copy that consists of dicts, lists, strings, numbers, booleans and None.

        Args:
            value: The value.
            path: Keys and indices from the root to the value. Default: the root.

        Raises:
            GaCError: The value cannot be written as JSON, or exceeds a limit; of the class given.
        """
        self._values += 1
        if self._values > MAX_VALUES:
            self._refuse(path, f"is one of more than {MAX_VALUES} values; make the whole smaller")
        if len(path) > MAX_DEPTH:
            self._refuse((), f"is nested more than {MAX_DEPTH} deep, at {_joined(path)}; {_FLATTER}")
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(value, path)
        if isinstance(value, int):
            return self._whole(int(value), path)
        if isinstance(value, float):
            if not math.isfinite(value):
                self._refuse(path, f"is {quote(value)}, which is not a JSON number; use a finite number")
            return float(value)
        if isinstance(value, Mapping):
            return {self._key(key, path): self.copy(value[key], (*path, str(key))) for key in value}
        if isinstance(value, (list, tuple)):
            return [self.copy(part, (*path, str(index))) for index, part in enumerate(value)]
        self._refuse(path, f"is {quote(value)}, which is not a JSON value; use dicts, lists, strings and numbers")

    def _key(self, key: object, path: tuple[str, ...]) -> str:
        if not isinstance(key, str):
            self._refuse(path, f"has the key {quote(key)}; use strings as keys")
        return self._text(key, path)

    def _text(self, value: str, path: tuple[str, ...]) -> str:
        self._characters += len(value)
        if self._characters > MAX_CHARACTERS:
            self._refuse(path, f"and the text before it exceed {MAX_CHARACTERS} characters; make the whole smaller")
        plain = str.__str__(value)
        try:
            plain.encode()
        except UnicodeEncodeError as bad:
            self._refuse(
                path, f"contains the lone surrogate {plain[bad.start]!r}, which UTF-8 cannot encode; replace it"
            )
        return plain

    def _whole(self, value: int, path: tuple[str, ...]) -> int:
        if value.bit_length() > 1023:
            self._refuse(path, f"is {quote(value)}, which exceeds the range of a double; use a smaller number")
        return value

    def _refuse(self, path: tuple[str, ...], reason: str) -> NoReturn:
        place = f" at {_joined(path)}" if path else ""
        raise self._error(f"{self._what}{place} {reason}")


_FLATTER = "write it flatter, for example with $defs"


def _joined(path: tuple[str, ...]) -> str:
    return shorten("/".join(shorten(part, 40) for part in path), 120)
