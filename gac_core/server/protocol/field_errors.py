"""From pydantic's errors to one error that names the field, the value and a remedy."""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from gac_core.errors import quote, shorten
from gac_core.server.errors import ApiError

Path = tuple[int | str, ...]

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
    "extra_body": "put its fields into the body itself",
    "tool_choice": 'for one function give {"type": "function", "function": {"name": ...}}',
    "response_format": 'for example {"type": "json_object"}',
}
_OTHER_ROUTES = {
    "prompt": "use messages, or POST /v1/completions",
    "messages": "use prompt, or POST /v1/chat/completions",
    "tools": "use POST /v1/chat/completions",
    "response_format": "use grammar, or POST /v1/chat/completions",
    "best_of": "use n",
}
"""Remedies for fields that another route has."""
_TYPES = {
    "messages": "the models read text and, in messages of role user, parts of type image_url",
    "tools": "OpenAI's own tools are not available; define a function",
}
_UNLIMITED = ("top_k", "max_tokens", "max_completion_tokens")
_WORDS = (
    (r"^(Input|List|String|Dictionary) should ", ""),
    (r" after validation, not \d+$", ""),
    (r"a valid dictionary.*", "an object"),
    (r"a valid list", "an array"),
    (r"a valid boolean", "true or false"),
    (r"an? valid (integer)", r"an \1"),
    (r"a valid ", "a "),
    (r"less than or equal to", "at most"),
    (r"greater than or equal to", "at least"),
    (r"greater than", "above"),
    (r"be None$", "be null"),
    (r"be False$", "be false"),
)
"""Words of pydantic's messages, and those of JSON."""


def field_error(errors: Sequence[Mapping[str, Any]], value: Any, known: Sequence[str]) -> ApiError:
    """Returns the error of the field that is wrong; of several alternatives of a union, the one that fits best.

    Args:
        errors: pydantic's errors.
        value: The body.
        known: The fields of the body.
    """
    if not isinstance(value, dict):
        return ApiError(400, "invalid_value", f"the body must be an object, not {_shown(value)}")
    located = [(_path(each, value), each) for each in errors]
    first = located[0][0][:1]
    # The alternative whose error lies deepest is the one that was meant.
    path, error = max((item for item in located if item[0][:1] == first), key=lambda item: len(item[0]))
    if error["type"] == "extra_forbidden":
        return _unknown(path, known if len(path) == 1 else ())
    if error["type"] in ("missing", "union_tag_not_found"):
        return _missing(path, located, known)
    return _invalid(path, error, [str(each["msg"]) for place, each in located if place == path])


def _missing(path: Path, located: Sequence[tuple[Path, Mapping[str, Any]]], known: Sequence[str]) -> ApiError:
    """Returns the error of a field that is missing, or of an unknown field beside it that was meant to be it."""
    beside = [
        (place, each["type"] == "extra_forbidden")
        for place, each in located
        if place[:-1] == path[:-1] and each["type"] in ("extra_forbidden", "missing")
    ]
    unknown = [place for place, is_unknown in beside if is_unknown]
    if unknown:
        names = known if len(path) == 1 else [str(place[-1]) for place, is_unknown in beside if not is_unknown]
        remedied = [place for place in unknown if _remedy(place, names)]
        if remedied:
            return _unknown(remedied[0], names)
    also = f"; unknown field {quote(_written(unknown[0]))}" if unknown else ""
    name = _written(path)
    return ApiError(400, "missing_field", f"{name} is missing; give it{also}", param=name)


def _unknown(path: Path, known: Sequence[str]) -> ApiError:
    name = _written(path)
    message = f"unknown field {quote(name)}; {_remedy(path, known) or 'leave it out'}"
    return ApiError(400, "unknown_parameter", message, param=shorten(name, 100))


def _remedy(path: Path, known: Sequence[str]) -> str | None:
    """Returns what to do about an unknown field; None where nothing better is known than to leave it out."""
    field = str(path[-1])
    remedy = _OTHER_ROUTES.get(field) or _REMEDIES.get(field) if len(path) == 1 else None
    if remedy is None:
        close = difflib.get_close_matches(field[:100], known, n=1)
        remedy = f"did you mean {close[0]}?" if close else None
    return remedy


def _invalid(path: Path, error: Mapping[str, Any], messages: Sequence[str]) -> ApiError:
    """Returns the error of a field with a wrong value.

    Args:
        path: The field.
        error: pydantic's error.
        messages: Those of all alternatives of the field.
    """
    if error["type"] == "union_tag_invalid":
        field = str(error["ctx"]["discriminator"]).strip("'")
        wanted, value, path = f"be one of {error['ctx']['expected_tags']}", error["input"][field], (*path, field)
    else:
        wanted, value = _wanted(messages), error["input"]
    name = _written(path)
    remedy = _remedy_of_value(path, value, error["type"])
    message = f"{name} must {wanted}, not {_shown(value)}{'; ' + remedy if remedy else ''}"
    return ApiError(400, "invalid_value", message, param=name)


def _wanted(messages: Sequence[str]) -> str:
    """Returns pydantic's messages about one field in the words of JSON."""
    reasons = []
    for reason in dict.fromkeys(messages):
        for pattern, word in _WORDS:
            reason = re.sub(pattern, word, reason)
        reasons.append(reason)
    reasons = list(dict.fromkeys(reasons))
    return ", or ".join([reasons[0], *(reason.removeprefix("be ") for reason in reasons[1:])])


def _remedy_of_value(path: Path, value: Any, kind: str) -> str | None:
    """Returns what to do about a field whose value is wrong."""
    if len(path) == 1:
        if path[0] in _UNLIMITED and isinstance(value, (int, float)) and value < 1:
            return "leave it out for no limit"
        return _REMEDIES.get(str(path[0]))
    if path[-1] == "type":
        return _TYPES.get(str(path[0]))
    if path[-1] == "detail":
        return "each member's processor sets the resolution; scale the image instead"
    if path[0] == "logit_bias" and kind == "string_pattern_mismatch":
        return "keys are token ids of the gate, as /tokenize returns them with add_special_tokens: false"
    if path[0] == "prompt" and isinstance(value, (int, list)):
        return "members have different tokenizers, so send text instead of token ids"
    return None


def _shown(value: Any) -> str:
    """Returns a value for a message; constants as in JSON."""
    return json.dumps(value) if value is None or isinstance(value, bool) else quote(value)


def _path(error: Mapping[str, Any], value: Any) -> Path:
    """Returns the part of an error's location that is in the body, without names of types.

    Args:
        error: pydantic's error.
        value: The body.
    """
    path = _walked(error, value, skip_tags=False)
    if error["type"] == "extra_forbidden" and path[-1:] != [error["loc"][-1]]:
        path = _walked(error, value, skip_tags=True)
    if error["type"] == "union_tag_not_found":
        path.append(str(error["ctx"]["discriminator"]).strip("'"))
    return tuple(path)


def _walked(error: Mapping[str, Any], value: Any, skip_tags: bool) -> list[int | str]:
    """Returns the steps of an error's location that lead into the body.

    Args:
        error: pydantic's error.
        value: The body.
        skip_tags: Whether steps that equal the ``type`` of an object name that type, rather than a field of its name.
    """
    path: list[int | str] = []
    location, is_missing = error["loc"], error["type"] == "missing"
    for index, step in enumerate(location):
        if skip_tags and isinstance(value, dict) and step == value.get("type"):
            continue
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
    return path


def _written(path: Sequence[int | str]) -> str:
    """Returns a path as ``messages[0].content``."""
    written = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in path)
    return written.removeprefix(".")
