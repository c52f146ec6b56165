"""Dataclasses that report unknown fields with a suggestion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from gac_core.errors import UnknownSettingError, listed, quote

_T = TypeVar("_T")


def check_names(values: Mapping[Any, Any], settings: Any, kind: str = "key", of_members: Iterable[str] = ()) -> None:
    """Raises an `UnknownSettingError` if a key is not a field.

    Args:
        values: Values by key.
        settings: The dataclass that has the fields.
        kind: What the keys are, for the message. Default ``"key"``.
        of_members: Keys that belong to the entries of members; the message says so. Default none.
    """
    known = {field.name for field in fields(settings)}
    unknown = [key for key in values if not isinstance(key, str) or key not in known]
    if unknown:
        moved = [quote("weight" if key == "weights" else key) for key in unknown if key in [*of_members]]
        remedy = f"set {listed(moved)} in the entries of the members instead" if moved else ""
        raise UnknownSettingError(unknown, known, kind, remedy)


def checked_names(cls: type[_T]) -> type[_T]:
    """Class decorator: the constructor of a dataclass raises an `UnknownSettingError` for unknown keywords."""
    set_fields: Callable[..., None] = cls.__init__

    @functools.wraps(set_fields)
    def init(self: Any, *args: Any, **values: Any) -> None:
        check_names(values, cls, "argument")
        set_fields(self, *args, **values)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls
