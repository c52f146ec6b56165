"""From the bytes of a request to its body, or to an error that names the field."""

from __future__ import annotations

import difflib
import json
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn, TypeVar

from pydantic import BaseModel, ValidationError

from gac_core.errors import quote, shorten
from gac_core.server.errors import ApiError

MAX_DEPTH = 64
"""Deepest nesting of a body."""
MAX_KEYS = 10_000
"""Most keys of an object in a body; the errors of more would take seconds to collect."""
MAX_DIGITS = 1000
"""Longest number of a body, in characters."""

_REMEDIES = {
    "functions": "use tools",
    "function_call": "use tool_choice",
    "reasoning_effort": "use enable_thinking",
    "chat_template_kwargs": "use enable_thinking",
    "guided_json": "use response_format",
    "guided_regex": 'use grammar: {"regex": ...}',
    "guided_choice": 'use grammar: {"choices": [...]}',
    "guided_grammar": 'use grammar: {"lark": ...}',
    "store": "answers are not stored; leave it out",
    "suffix": "texts are continued at their end only; leave it out",
    "audio": "the models read and write text only; leave it out",
    "web_search_options": "the server does not search; give the models a tool",
    "prediction": "drafts are made from the prompt; leave it out",
}

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
        raise _field_error(error.errors(include_url=False), value, sorted(model.model_fields)) from None


def read_json(content: bytes) -> Any:
    """Returns the value of a JSON text in UTF-8, without lone surrogates, NaN and deep nesting.

    Raises:
        ApiError: It is not such a text.
    """
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


def _field_error(errors: Sequence[Mapping[str, Any]], value: Any, known: Sequence[str]) -> ApiError:
    """Returns the error of the field that is wrong; of several alternatives of a union, the one that fits best."""
    if not isinstance(value, dict):
        return ApiError(400, "invalid_value", f"the body must be an object, not {quote(value)}")
    paths = [(_path(error["loc"], value, error["type"] == "missing"), error) for error in errors]
    first = paths[0][0][:1]
    # The alternative whose error lies deepest is the one that was meant.
    path, error = max((item for item in paths if item[0][:1] == first), key=lambda item: len(item[0]))
    same = [each for place, each in paths if place == path]
    name = _written(path)
    if error["type"] == "extra_forbidden":
        return _unknown(name, str(path[-1]), known if len(path) == 1 else ())
    if error["type"] in ("missing", "union_tag_not_found"):
        return ApiError(400, "missing_field", f"{name} is missing; give it", param=name)
    reasons = "; or ".join(dict.fromkeys(str(each["msg"]) for each in same))
    remedy = _REMEDIES.get(str(path[-1])) if path else None
    if str(path[-1:]) == "('type',)":
        remedy = "the models read and write text only"
    message = f"{name} is {quote(error['input'])}: {reasons}{'; ' + remedy if remedy else ''}"
    return ApiError(400, "invalid_value", message, param=name)


def _unknown(name: str, field: str, known: Sequence[str]) -> ApiError:
    remedy = _REMEDIES.get(field)
    if remedy is None:
        close = difflib.get_close_matches(field[:100], known, n=1)
        remedy = f"did you mean {close[0]}?" if close else "leave it out"
    return ApiError(400, "unknown_parameter", f"unknown field {quote(name)}; {remedy}", param=shorten(name, 100))


def _path(location: Sequence[int | str], value: Any, is_missing: bool) -> tuple[int | str, ...]:
    """Returns the part of pydantic's location that is in the body, without names of types.

    Args:
        location: The location.
        value: The body.
        is_missing: Whether the last step is a field that the body lacks.
    """
    path: list[int | str] = []
    for index, step in enumerate(location):
        if (
            isinstance(value, dict)
            and isinstance(step, str)
            and (step in value or (is_missing and index == len(location) - 1))
        ):
            path.append(step)
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            path.append(step)
            value = value[step]
    return tuple(path)


def _written(path: Sequence[int | str]) -> str:
    """Returns a path as ``messages[0].content``."""
    written = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return written.removeprefix(".")
