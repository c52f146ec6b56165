"""From the bytes of a request to its body, or to an error that names the field."""

from __future__ import annotations

import json
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from gac_core.errors import quote, shorten
from gac_core.server.errors import ApiError
from gac_core.server.protocol.field_errors import field_error

MAX_DEPTH = 64
"""Deepest nesting of a body."""
MAX_KEYS = 10_000
"""Most keys of an object in a body; the errors of more would take seconds to collect."""
MAX_DIGITS = 1000
"""Longest number of a body, in characters."""

_Body = TypeVar("_Body", bound=BaseModel)


def parsed(model: type[_Body], content: bytes, content_type: str) -> _Body:
    """Returns the body of a request.

    Args:
        model: Its model.
        content: The bytes.
        content_type: The header, which must name a type of JSON.

    Raises:
        ApiError: It is not JSON, or a field is wrong.
    """
    kind = content_type.partition(";")[0].strip().lower()
    # Web pages can send other types, and none, to a server on the same machine without asking it.
    if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
        message = f"the content type must be application/json, not {quote(content_type)}; set the header Content-Type"
        raise ApiError(415, "unsupported_media_type", message)
    value = read_json(content)
    try:
        return model.model_validate(value)
    except ValidationError as error:
        raise field_error(error.errors(include_url=False), value, sorted(model.model_fields)) from None


def read_json(content: bytes) -> Any:
    """Returns the value of a JSON text in UTF-8, without lone surrogates, NaN and deep nesting.

    Raises:
        ApiError: It is not such a text.
    """
    if not content:
        raise _malformed("it is empty")
    try:
        value = json.loads(content.decode(), parse_constant=_refuse_constant, parse_float=_read_float)
    except (ValueError, RecursionError) as error:
        raise _malformed(shorten(str(error), 200)) from None
    _check_values(value)
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def _read_float(text: str) -> float:
    if len(text) > MAX_DIGITS:
        raise ValueError(f"a number has more than {MAX_DIGITS} characters")
    return float(text)


def _malformed(reason: str) -> ApiError:
    return ApiError(400, "invalid_json", f"the body is not valid JSON: {reason}")


def _check_values(value: Any) -> None:
    """Raises if a value is nested too deeply or has a string that UTF-8 cannot encode."""
    level, depth = [value], 0
    while level:
        below: list[Any] = []
        for item in level:
            if isinstance(item, dict):
                if len(item) > MAX_KEYS:
                    raise _malformed(f"an object has {len(item)} keys, more than {MAX_KEYS}")
                below += [*item, *item.values()]
            elif isinstance(item, list):
                below += item
            elif isinstance(item, str):
                _check_string(item)
            if depth == MAX_DEPTH and isinstance(item, (dict, list)):
                raise _malformed(f"it is nested more than {MAX_DEPTH} levels deep")
        level, depth = below, depth + 1


def _check_string(text: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise _malformed(f"a string has {text[error.start]!r}, half of a surrogate pair; replace it") from None
