"""Dataclasses that report unknown fields with a suggestion."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import fields
from typing import Any, TypeVar

from gac_core.errors import UnknownSettingError

_T = TypeVar("_T")


def check_names(values: Mapping[Any, Any], kind: Any) -> None:
    """Raises an `UnknownSettingError` if a key of ``values`` is not a field of the dataclass ``kind``."""
    known = {field.name for field in fields(kind)}
    unknown = [key for key in values if not isinstance(key, str) or key not in known]
    if unknown:
        raise UnknownSettingError(unknown, known)


def checked_names(cls: type[_T]) -> type[_T]:
    """Class decorator: the constructor of a dataclass raises an `UnknownSettingError` for unknown keywords."""
    set_fields: Callable[..., None] = cls.__init__

    @functools.wraps(set_fields)
    def init(self: Any, *args: Any, **values: Any) -> None:
        check_names(values, cls)
        set_fields(self, *args, **values)

    cls.__init__ = init  # type: ignore[method-assign]
    return cls
