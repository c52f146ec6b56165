"""Two hundred JSON schemas, one by hand for each feature that applications use, and grammars that overflow a stack."""

from __future__ import annotations

import json
import random

import jsonschema

from gac_core import Grammar

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "minLength": 1, "maxLength": 12},
        "email": {"type": "string", "format": "email", "maxLength": 30},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}
BY_HAND = [
    PERSON,
    {"type": "array", "items": PERSON, "minItems": 1, "maxItems": 2},
    {"$ref": "#/$defs/p", "$defs": {"p": PERSON}},
    {
        "type": "object",
        "properties": {"straße": {"type": "boolean"}, "名前": {"type": "null"}, "a b": {"const": "é"}},
        "required": ["straße", "名前", "a b"],
        "additionalProperties": False,
    },
    {"enum": ["red", "green", "blau", 3, None, True, {"a": [1]}]},
    {"type": "string", "pattern": "^[A-Z]{2}-[0-9]{3,5}$"},
    {"type": "string", "format": "date"},
    {"type": "string", "format": "date-time"},
    {"type": "string", "format": "uuid"},
    {"type": "string", "format": "ipv4"},
    {"type": "number", "minimum": -1.5, "maximum": 2.25},
    {"type": "number", "exclusiveMinimum": 0, "exclusiveMaximum": 1},
    {"type": "integer", "minimum": -1000, "exclusiveMaximum": 1000},
    {"type": ["string", "null"], "maxLength": 5},
    {"anyOf": [{"type": "integer", "minimum": 0, "maximum": 9}, {"type": "string", "maxLength": 4}, PERSON]},
    {"oneOf": [{"type": "boolean"}, {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}]},
    {"allOf": [PERSON, {"type": "object", "required": ["email"]}]},
    {"type": "array", "prefixItems": [{"type": "boolean"}, {"const": 7}], "items": False, "minItems": 2},
    {
        "type": "object",
        "properties": {"kind": {"const": "leaf"}, "value": {"type": "integer", "minimum": 0, "maximum": 99}},
        "required": ["kind"],
        "additionalProperties": False,
    },
    {
        "$ref": "#/$defs/tree",
        "$defs": {
            "tree": {
                "type": "object",
                "properties": {
                    "v": {"enum": [1, 2]},
                    "next": {"anyOf": [{"type": "null"}, {"$ref": "#/$defs/tree"}]},
                },
                "required": ["v", "next"],
                "additionalProperties": False,
            }
        },
    },
    {
        "type": "object",
        "properties": {"m": {"type": "object", "additionalProperties": {"type": "boolean"}, "maxProperties": 2}},
        "required": ["m"],
        "additionalProperties": False,
    },
    {"type": "object", "properties": {}, "additionalProperties": False},
    {"type": "array", "maxItems": 0},
    {"type": "integer", "minimum": 0, "maximum": 100, "multipleOf": 5},
]


def drawn(seed: int, depth: int = 3) -> dict:
    """A schema with bounded texts, by its seed."""
    rng = random.Random(seed)
    return _value(rng, depth)


def _value(rng: random.Random, depth: int) -> dict:
    simple = [_string, _integer, _number, _enum, lambda r: {"type": "boolean"}, lambda r: {"type": "null"}]
    nested = [_object, _object, _array, _union]
    if depth and rng.random() < 0.2 + 0.25 * depth:
        return rng.choice(nested)(rng, depth - 1)
    return rng.choice(simple)(rng)


def _string(rng: random.Random) -> dict:
    kind = rng.random()
    if kind < 0.3:
        return {"type": "string", "pattern": rng.choice(["^[a-z]{1,6}$", "^(a|bc)+d{0,2}$", "^\\d{4}$", "^[äöü]{2}$"])}
    low = rng.randint(0, 3)
    return {"type": "string", "minLength": low, "maxLength": low + rng.randint(0, 8)}


def _integer(rng: random.Random) -> dict:
    low = rng.randint(-500, 500)
    return {"type": "integer", "minimum": low, "maximum": low + rng.randint(0, 5000)}


def _number(rng: random.Random) -> dict:
    low = round(rng.uniform(-10, 10), 2)
    return {"type": "number", "minimum": low, "maximum": low + rng.randint(1, 20)}


def _enum(rng: random.Random) -> dict:
    values = ["x", "y z", "Größe", '"quoted"', "back\\slash", "line\nbreak", 1, -2.5, None, False, [1, "a"], {"k": 0}]
    return {"enum": rng.sample(values, rng.randint(1, 5))}


def _object(rng: random.Random, depth: int) -> dict:
    names = rng.sample(["id", "name", "ключ", "a-b", "c d", "日", 'q"', "tags", "x1"], rng.randint(1, 4))
    properties = {name: _value(rng, depth) for name in names}
    required = [name for name in names if rng.random() < 0.7]
    return {"type": "object", "properties": properties, "required": required, "additionalProperties": False}


def _array(rng: random.Random, depth: int) -> dict:
    low = rng.randint(0, 2)
    return {"type": "array", "items": _value(rng, depth), "minItems": low, "maxItems": low + rng.randint(0, 2)}


def _union(rng: random.Random, depth: int) -> dict:
    return {"anyOf": [_value(rng, depth) for _ in range(rng.randint(2, 3))]}


SCHEMAS = [*BY_HAND, *(drawn(seed) for seed in range(200 - len(BY_HAND)))]


def fits(text, schema):
    jsonschema.Draft202012Validator(schema, format_checker=jsonschema.FormatChecker()).validate(json.loads(text))


def chained_rules(count):
    rules = [f"r{index}: r{index + 1}" for index in range(count)]
    return Grammar.lark_grammar("\n".join(["start: r0", *rules, f'r{count}: "x"']))


def chained_definitions(count):
    parts = {f"d{i}": {"type": "object", "properties": {"a": {"$ref": f"#/$defs/d{i + 1}"}}} for i in range(count)}
    return Grammar.json_schema({"$ref": "#/$defs/d0", "$defs": {**parts, f"d{count}": {"type": "string"}}})


CRASHES = [chained_rules(3000), chained_rules(30000), chained_definitions(1000)]
