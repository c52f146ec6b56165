"""What texts of a JSON schema hold: properties, formats, names, numbers, tags; and what is refused."""

from __future__ import annotations

import copy
import datetime
import json

import pytest
from schemas import fits

from gac_core import Grammar, GrammarError
from gac_core.grammar.schema import is_recursive


def test_objects_get_no_properties_that_nobody_listed(talkers):
    inner = {"type": "object", "properties": {"b": {"type": "boolean"}}}
    schema = {"type": "object", "properties": {"a": inner, "c": {"$ref": "#/$defs/d"}}, "$defs": {"d": inner}}
    for seed in range(8):
        asked = {"temperature": 1.0, "seed": seed, "max_tokens": 400}
        values = json.loads(talkers.generate("x", grammar=Grammar.json_schema(schema), **asked).text)
        assert set(values) <= {"a", "c"}
        assert all(set(value) <= {"b"} for value in values.values())
    joined = {"allOf": [{"type": "object", "properties": {"a": {"const": 1}}, "required": ["a"]}, {"required": ["z"]}]}
    joined["allOf"].append({"properties": {"z": {"const": 2}}, "additionalProperties": True})
    assert '"additionalProperties": false' not in Grammar.json_schema(joined).lark


def test_formats_that_nobody_enforces_are_annotations(ensemble):
    schema = {"type": "string", "format": "file-path", "maxLength": 3}
    assert len(json.loads(ensemble.generate("x", grammar=Grammar.json_schema(schema), max_tokens=20).text)) <= 3
    day = {"type": "string", "format": "date"}
    datetime.date.fromisoformat(json.loads(ensemble.generate("x", grammar=Grammar.json_schema(day)).text))
    # A property may be called so.
    named = {"type": "object", "properties": {"format": {"enum": ["path"]}}, "required": ["format"]}
    assert ensemble.generate("x", grammar=Grammar.json_schema(named)).text == '{"format": "path"}'


@pytest.mark.parametrize(
    ("names", "kept"),
    [
        ({"enum": ["x", "y", 3]}, {"x", "y"}),
        ({"$ref": "#/$defs/one"}, {"x"}),
        ({"pattern": "^[ab]$", "type": "string"}, {"a", "b"}),
    ],
)
def test_names_of_properties_are_kept(talkers, names, kept):
    values = {
        "type": "object",
        "additionalProperties": {"type": "boolean"},
        "propertyNames": names,
    }
    schema = {"properties": {"v": values}, "required": ["v"], "$defs": {"one": {"const": "x", "title": "One"}}}
    grammar = Grammar.json_schema({"type": "object", **schema})
    for seed in range(8):
        text = talkers.generate("x", grammar=grammar, temperature=2.0, seed=seed, max_tokens=200).text
        fits(text, schema)
        assert json.loads(text)["v"].keys() <= kept


def test_names_that_may_be_any_string_are_no_restriction(ensemble):
    schema = {"type": "object", "propertyNames": {"type": "string"}, "properties": {"a": {"const": 1}}}
    schema = {**schema, "required": ["a"], "additionalProperties": False}
    assert ensemble.generate("x", grammar=Grammar.json_schema(schema)).text == '{"a": 1}'
    with pytest.raises(GrammarError, match=r"propertyNames.*check the answer"):
        ensemble.generate("x", grammar=Grammar.json_schema({"propertyNames": {"maxLength": 3}}))


@pytest.mark.parametrize(
    ("schema", "told"),
    [
        ({"enum": [1234567890123456789]}, "1234567890123456789"),
        ({"properties": {"a": {"const": 123456789.12345679}}}, "make it a string"),
        ({"type": "integer", "multipleOf": 2**60 + 1}, "multipleOf"),
        ({"type": "integer", "minimum": 2**60 + 1, "maximum": 2**60 + 3}, "[Uu]nsatisf"),
    ],
)
def test_numbers_that_would_become_others_are_refused(ensemble, schema, told):
    with pytest.raises(GrammarError, match=told):
        ensemble.generate("x", grammar=Grammar.json_schema(schema))


def test_bounds_of_64_bits_are_kept(talkers):
    schema = {"type": "integer", "minimum": 2**63 - 2000, "maximum": 2**63 - 1}
    for seed in range(5):
        text = talkers.generate("x", grammar=Grammar.json_schema(schema), temperature=2.0, seed=seed).text
        fits(text, schema)


def test_what_is_required_without_being_listed_has_its_place(ensemble):
    schema = {"type": "object", "properties": {"a": {"const": 1}}, "required": ["a", "b"]}
    schema["additionalProperties"] = True
    before = Grammar.json_schema(schema)
    del schema["additionalProperties"]
    asked = {"max_tokens": 30, "temperature": 0.0}
    assert (
        ensemble.generate("x", grammar=Grammar.json_schema(schema), **asked).text
        == ensemble.generate("x", grammar=before, **asked).text
    )


def test_tags_with_defaults_are_written_out(ensemble):
    def branch(tag):
        return {"type": "object", "properties": {"kind": {"const": tag, "default": tag}}}

    union = {"oneOf": [branch("a"), {"$ref": "#/$defs/b"}], "discriminator": {"propertyName": "kind"}}
    schema = {"type": "object", "properties": {"v": union}, "required": ["v"], "$defs": {"b": branch("b")}}
    before = copy.deepcopy(schema)
    texts = {
        ensemble.generate("x", grammar=Grammar.json_schema(schema), temperature=2.0, seed=seed).text
        for seed in range(8)
    }
    assert texts == {'{"v": {"kind": "a"}}', '{"v": {"kind": "b"}}'}
    assert schema == before


@pytest.mark.parametrize(
    ("schema", "want"),
    [
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/a"}}}}, True),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"$ref": "#/$defs/a"}}}, True),
        ({"items": {"$ref": "#"}}, True),
        ({"$defs": {"a": {"items": {"$ref": "#/$defs/b"}}, "b": {"type": "string"}}}, False),
        ({"type": "object"}, False),
    ],
)
def test_schemas_that_refer_to_themselves(schema, want):
    assert is_recursive(schema) is want
