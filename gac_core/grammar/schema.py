"""Conversion of JSON schemas into schemas that llguidance can enforce.

Every text that the result allows is valid under the given schema. Objects are closed, and annotations are removed.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping
from decimal import Decimal
from typing import Any

from gac_core.errors import GrammarError, quote
from gac_core.grammar.plainjson import PlainJson

# JSON has exactly this spacing, as in training data, so that the schema determines everything between two values.
_SPACING = {"whitespace_flexible": False, "item_separator": ", ", "key_separator": ": "}
# The formats that llguidance supports; others are annotations, as for validators.
_FORMATS = ("date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uri", "uuid", "unknown")
_NAMED = ("properties", "$defs", "definitions", "patternProperties")
_LISTED = ("anyOf", "oneOf", "allOf", "prefixItems")
_SINGLE = ("items", "additionalProperties")

_NUMBER, _LIST, _TEXT = ((int, float), "a number"), (list, "a list"), (str, "a string")
_KINDS: dict[str, tuple[type | tuple[type, ...], str]] = {
    **dict.fromkeys(_NAMED, (dict, "an object of schemas")),
    **dict.fromkeys((*_LISTED, "enum", "required"), _LIST),
    **dict.fromkeys(("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"), _NUMBER),
    **dict.fromkeys(("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"), _NUMBER),
    **dict.fromkeys(("$ref", "pattern", "format", "$schema", "$id"), _TEXT),
    "type": ((str, list), "a string or a list of strings"),
}

# Every integer up to this one is exact as a double.
_EXACT = 2**53

Schema = dict[str, Any]


def to_enforceable(schema: Mapping[str, Any] | str) -> str:
    """Returns the schema to enforce, as JSON.

    Raises:
        GrammarError: The schema is not a JSON object, or a keyword has a value that cannot be enforced.
    """
    plain = PlainJson(GrammarError, "the schema")
    value = plain.read(schema) if isinstance(schema, str) else plain.copy(schema)
    if isinstance(value, bool):
        value = {} if value else {"not": {}}
    if not isinstance(value, dict):
        raise GrammarError(f"a JSON schema must be an object, not {quote(value)}")
    _check_keywords(value)
    text = json.dumps(value)
    value = _changed(_changed(value, _with_exact_numbers), _without_annotations)
    definitions = _definitions(value)
    _require_tags(value, definitions)
    value = _changed(value, lambda part: _with_listed_names(part, definitions))
    # With allOf, a closed schema would forbid the properties of the others.
    value = value if '"allOf"' in text else _changed(value, _closed)
    options = value.get("x-guidance")
    return json.dumps({**value, "x-guidance": {**_SPACING, **(options if isinstance(options, dict) else {})}})


def _check_keywords(schema: Any) -> None:
    """Raises if the value of a keyword has a wrong type."""
    if not isinstance(schema, (dict, bool)):
        raise GrammarError(f"a schema within the schema is {quote(schema)}; make it an object, true or false")
    for key, value in schema.items() if isinstance(schema, dict) else ():
        if key in _KINDS and (not isinstance(value, _KINDS[key][0]) or isinstance(value, bool)):
            raise GrammarError(f"the schema's {key} is {quote(value)}; make it {_KINDS[key][1]}")
        if key == "required" and not all(isinstance(name, str) for name in value):
            raise GrammarError(f"the schema's required is {quote(value)}; make it a list of names")
        if key in _NAMED or key in _LISTED:
            for part in value.values() if key in _NAMED else value:
                _check_keywords(part)
        elif key in _SINGLE or key == "propertyNames":
            for part in value if isinstance(value, list) else (value,):
                _check_keywords(part)


def _changed(schema: Any, change: Callable[[Schema], Schema]) -> Any:
    """The schema with a function applied to each schema within it, and then to itself."""
    if not isinstance(schema, dict):
        return schema
    out = dict(schema)
    for key in _NAMED:
        if isinstance(out.get(key), dict):
            out[key] = {name: _changed(part, change) for name, part in out[key].items()}
    for key in _LISTED:
        if isinstance(out.get(key), list):
            out[key] = [_changed(part, change) for part in out[key]]
    for key in _SINGLE:
        out.update({key: _changed(out[key], change)} if key in out else {})
    return change(out)


def _with_exact_numbers(schema: Schema) -> Schema:
    """Moves bounds to doubles, which llguidance computes with; raises for other numbers that are not doubles."""
    for key in ("enum", "const"):
        changed = [number for number in _numbers(schema.get(key)) if not _is_exact(number)]
        if changed:
            raise GrammarError(
                f"the schema's {key} contains {changed[0]}, which a double cannot represent; make it a string"
            )
    if isinstance(schema.get("multipleOf"), int) and schema["multipleOf"] > _EXACT:
        raise GrammarError(
            f"the schema's multipleOf is {schema['multipleOf']}, which a double cannot represent; use a smaller number"
        )
    for key, toward in (("minimum", 1), ("exclusiveMinimum", 1), ("maximum", -1), ("exclusiveMaximum", -1)):
        bound = schema.get(key)
        if isinstance(bound, int) and not isinstance(bound, bool) and abs(bound) > _EXACT:
            near = float(bound)
            if (int(near) - bound) * toward < 0:
                near = math.nextafter(near, math.inf * toward)
            schema[key] = int(near)
    return schema


def _numbers(value: Any) -> Iterator[int | float]:
    """Yields all numbers in a value."""
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        yield value
    for part in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _numbers(part)


def _is_exact(number: int | float) -> bool:
    if isinstance(number, int):
        return abs(number) <= _EXACT
    return len(Decimal(repr(number)).as_tuple().digits) <= 15


def _without_annotations(schema: Schema) -> Schema:
    if schema.get("format", "unknown") in _FORMATS:
        return schema
    return {key: value for key, value in schema.items() if key != "format"}


def _closed(schema: Schema) -> Schema:
    """Closes an object that lists its properties and does not mention others."""
    open_keys = (
        "additionalProperties",
        "unevaluatedProperties",
        "patternProperties",
        "anyOf",
        "oneOf",
        "$ref",
        "enum",
        "const",
    )
    listed = schema.get("properties")
    # Required properties that are not listed must stay possible.
    is_complete = isinstance(listed, dict) and set(schema.get("required", ())) <= set(listed)
    if is_complete and not any(key in schema for key in open_keys):
        schema["additionalProperties"] = False
    return schema


def _definitions(schema: Schema) -> dict[str, Schema]:
    """The definitions of a schema by reference, such as ``#/$defs/name``."""
    return {
        f"#/{key}/{name}": part
        for key in ("$defs", "definitions")
        for name, part in schema.get(key, {}).items()
        if isinstance(part, dict)
    }


def _with_listed_names(schema: Schema, definitions: Mapping[str, Schema]) -> Schema:
    """Replaces ``propertyNames`` with a list or pattern of names by ``properties`` or ``patternProperties``."""
    names = schema.get("propertyNames")
    if not isinstance(names, dict):
        return schema
    names = {**names, **definitions[names["$ref"]]} if names.get("$ref") in definitions else names
    rules = {key: value for key, value in names.items() if key not in ("$ref", "title", "description", "default")}
    out = {key: part for key, part in schema.items() if key != "propertyNames"}
    if not rules or rules == {"type": "string"}:
        return out
    if "properties" in schema or "patternProperties" in schema:
        return schema
    value = schema.get("additionalProperties", True)
    allowed = rules.get("enum", [rules["const"]] if "const" in rules else None)
    if rules.keys() <= {"type", "enum", "const"} and isinstance(allowed, list):
        # Names are strings; other listed values cannot occur as names.
        listed = {name: value for name in allowed if isinstance(name, str)}
        return {**out, "properties": listed, "additionalProperties": False}
    if rules.keys() in ({"pattern"}, {"pattern", "type"}):
        return {**out, "patternProperties": {rules["pattern"]: value}, "additionalProperties": False}
    return schema


def _require_tags(schema: Schema, definitions: Mapping[str, Schema]) -> None:
    """Makes the tag of a tagged union required where it has a default, so that no value fits two branches."""
    for union in _within(schema):
        discriminator = union.get("discriminator")
        tag = discriminator.get("propertyName") if isinstance(discriminator, dict) else None
        for branch in union.get("oneOf", ()) if isinstance(tag, str) else ():
            if not isinstance(branch, dict):
                continue
            target = definitions.get(branch.get("$ref", ""), branch)
            if tag in target.get("properties", {}) and tag not in target.get("required", ()):
                target["required"] = [*target.get("required", ()), tag]


def _within(schema: Any) -> Iterator[Schema]:
    """Yields the schema and each schema within it."""
    if not isinstance(schema, dict):
        return
    yield schema
    parts = [schema.get(key) for key in _SINGLE]
    parts += [part for key in _NAMED if isinstance(schema.get(key), dict) for part in schema[key].values()]
    parts += [part for key in _LISTED if isinstance(schema.get(key), list) for part in schema[key]]
    for part in parts:
        yield from _within(part)


def is_recursive(schema: Mapping[str, Any]) -> bool:
    """Returns whether a schema refers to itself, directly or through others."""
    try:
        schema = PlainJson(GrammarError, "the schema").copy(schema)
    except GrammarError:
        # `Grammar.json_schema` raises for it.
        return False
    named = [schema[key] for key in ("$defs", "definitions") if isinstance(schema.get(key), dict)]
    texts = {name: json.dumps(part) for parts in named for name, part in parts.items()}
    references = {name: {other for other in texts if f'/{other}"' in text} for name, text in texts.items()}
    for name in texts:
        seen: set[str] = set()
        ahead = set(references[name])
        while ahead:
            seen |= ahead
            ahead = {further for other in ahead for further in references[other]} - seen
        if name in seen:
            return True
    return '"$ref": "#"' in json.dumps(schema)
