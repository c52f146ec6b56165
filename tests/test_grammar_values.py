"""Values that are not grammars or schemas are refused by short errors that name them."""

from __future__ import annotations

from collections import UserDict

import pytest

from gac_core import Grammar, GrammarError, RequestError, Tool
from gac_core.grammar.schema import is_recursive


def deep(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"properties": {"a": schema}}
    return schema


def twofold(levels):
    schema = {"type": "string"}
    for _ in range(levels):
        schema = {"anyOf": [schema, schema]}
    return schema


def circular():
    schema = {"properties": {}}
    schema["properties"]["a"] = schema
    return schema


class Broken(UserDict):
    def __getitem__(self, key):
        raise KeyError("gone")


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Grammar.choices(1.0), r"choices must be a list.*1\.0"),
        (lambda: Grammar.choices([1]), "each of the choices"),
        (lambda: Grammar.choices(range(10**12)), "choices has 1000000000000 texts"),
        (lambda: Grammar.choices(["x" * 5_000_000]), "more than 4000000"),
        (lambda: Grammar.tool_calls(5), "tools must be a mapping"),
        (lambda: Grammar.tool_calls({"a": {"minimum": float("nan")}}), "tool 'a'.*minimum is nan"),
        (lambda: Grammar.tool_calls({f"t{i}": {} for i in range(1001)}), "1001 tools"),
        (lambda: Grammar.regex("a" * 5_000_000), "more than 4000000"),
        (lambda: Grammar.lark_grammar("start: A\n" * 1_000_000), "more than 4000000"),
        (lambda: Grammar("tools", "start: A", tools=5), "pairs of strings"),
        (lambda: Grammar("tools", "start: A", tools=((1, "a"),)), "pairs of strings"),
        (lambda: Grammar.json_schema({"$defs": [1]}), r"\$defs is \[1\]; make it an object"),
        (lambda: Grammar.json_schema({"definitions": 3}), "definitions is 3"),
        (lambda: Grammar.json_schema({"properties": {"a": {"minimum": 10**400}}}), "properties/a/minimum is <an int"),
        (lambda: Grammar.json_schema({"maximum": float("inf")}), "maximum is inf"),
        (lambda: Grammar.json_schema('{"maximum": 1e999}'), "maximum is inf"),
        (lambda: Grammar.json_schema('{"maximum": NaN}'), "maximum is nan"),
        (lambda: Grammar.json_schema('{"maximum": ' + "1" * 5000 + "}"), "not valid JSON"),
        (lambda: Grammar.json_schema('{"type": "string", "type": "null"}'), "'type' twice"),
        (lambda: Grammar.json_schema({"properties": {1: {}}}), "properties has the key 1"),
        (lambda: Grammar.json_schema({"enum": [{1, 2}]}), "enum/0 is {1, 2}"),
        (lambda: Grammar.json_schema({"enum": ["\ud800"]}), "surrogate"),
        (lambda: Grammar.json_schema({"required": [{}]}), "required"),
        (lambda: Grammar.json_schema({"oneOf": [3], "discriminator": {"propertyName": "a"}}), "within the schema is 3"),
        (lambda: Grammar.json_schema({"items": "a"}), "within the schema is 'a'"),
        (lambda: Grammar.json_schema({"pattern": 5}), "pattern is 5"),
        (lambda: Grammar.json_schema({"propertyNames": {"pattern": 5}}), "pattern is 5"),
        (lambda: Grammar.json_schema(deep(2000)), "more than 100 deep"),
        (lambda: Grammar.json_schema('{"items": ' * 2000 + "{}" + "}" * 2000), "more than 100 deep"),
        (lambda: Grammar.json_schema("[" * 100_000), "more than 100 deep"),
        (lambda: Grammar.json_schema(twofold(40)), "more than 200000 values"),
        (lambda: Grammar.json_schema(circular()), "more than 100 deep"),
        (lambda: Grammar.json_schema(Broken(a=1)), "KeyError"),
        (lambda: Grammar.json_schema("x" * 10_000), "not valid JSON"),
        (lambda: Grammar.json_schema({"const": "x" * 5_000_000}), "4000000 characters"),
    ],
)
def test_values_of_wrong_types_are_refused_briefly(make, told):
    with pytest.raises(GrammarError, match=told) as caught:
        make()
    assert len(str(caught.value)) < 800


def test_is_recursive_takes_any_value():
    for schema in ({"$defs": [1]}, {"$defs": {"a": {1}}}, circular(), deep(2000), {"a": float("nan")}, {1: 2}):
        assert is_recursive(schema) is False


def test_messages_of_the_compiler_are_short(ensemble):
    for grammar in (
        Grammar.regex("(" + "a" * 50_000),
        Grammar.lark_grammar("start: " + "a" * 50_000),
        Grammar.json_schema({"type": "x" * 50_000}),
        Grammar("x" * 50_000, "start: nothing"),
    ):
        with pytest.raises(GrammarError) as caught:
            ensemble.generate("x", grammar=grammar)
        assert len(str(caught.value)) < 700


def test_tools_with_such_schemas_are_refused(ensemble):
    for schema in (deep(2000), {"$defs": [1]}, {"minimum": 10**400}, {"properties": {1: {}}}):
        with pytest.raises(RequestError) as caught:
            ensemble.generate([{"role": "user", "content": "x"}], tools=[Tool("a", "", schema)], tool_choice="required")
        assert len(str(caught.value)) < 800


@pytest.mark.parametrize(
    "make",
    [
        lambda: Grammar.json_schema("[1"),
        lambda: Grammar.json_schema([1]),
        lambda: Grammar.json_schema({"enum": [{1, 2}]}),
        lambda: Grammar.regex(""),
        lambda: Grammar.lark_grammar(" "),
        lambda: Grammar.choices([]),
        lambda: Grammar.choices("yes"),
        lambda: Grammar.tool_calls({}),
    ],
)
def test_what_is_no_grammar_is_refused(make):
    with pytest.raises(GrammarError):
        make()


def test_a_grammar_must_be_one(ensemble):
    with pytest.raises(RequestError, match=r"Grammar\.json_schema"):
        ensemble.generate("x", grammar={"type": "object"})
