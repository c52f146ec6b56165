"""What the wrappers share: fields, arguments of calls, structured output, and the ensemble's settings per call."""

from __future__ import annotations

import pytest
from pydantic import BaseModel

from gac_core import (
    ENSEMBLE_FIELDS,
    LOADING_FIELDS,
    SAMPLING_FIELDS,
    WRAPPER_FIELDS,
    AnswerError,
    ConfigError,
    FinishReason,
    Grammar,
    InvalidToolCall,
    MemberStats,
    RequestError,
    RequestOutput,
    RequestStats,
    SamplingParams,
    StructuredOutput,
    UnknownArgumentError,
    Usage,
    check_tool_calls,
    field_error,
    read_json_answer,
    read_tool_choice,
    recursive_schema,
    split_arguments,
    token_counts,
    with_recursive_parameters,
)
from gac_core.combination import COMBINERS, GATES
from gac_core.combination.documents import DOCUMENT_RULES
from gac_langchain import ChatGaC
from gac_langchain import GaCLLM as LangChainLLM
from gac_langchain.settings import EnsembleSettings
from gac_llamaindex import GaCLLM

PER_CALL = {"weights", "combine", "combine_documents", "alignment", "gate_rule"}
WRAPPERS = [ChatGaC, LangChainLLM, GaCLLM]


# ---- fields


def test_the_table_has_every_field():
    missing = (set(ENSEMBLE_FIELDS) | SAMPLING_FIELDS) - set(WRAPPER_FIELDS)
    assert not missing, f"add a row for {sorted(missing)} to WRAPPER_FIELDS in gac_core/integration/fields.py"
    left = set(WRAPPER_FIELDS) - set(ENSEMBLE_FIELDS) - SAMPLING_FIELDS
    assert not left, f"remove the row of {sorted(left)} from WRAPPER_FIELDS in gac_core/integration/fields.py"
    assert set(ENSEMBLE_FIELDS) & SAMPLING_FIELDS == PER_CALL
    assert set(ENSEMBLE_FIELDS) - PER_CALL == LOADING_FIELDS
    params = SamplingParams()
    assert {name: getattr(params, name) or None for name in SAMPLING_FIELDS} == {
        name: WRAPPER_FIELDS[name].default or None for name in SAMPLING_FIELDS
    }


def test_descriptions_name_every_rule():
    for field, rules in (("combine", COMBINERS), ("combine_documents", DOCUMENT_RULES), ("gate_rule", GATES)):
        for rule in rules:
            assert f'"{rule}"' in WRAPPER_FIELDS[field].description


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrappers_have_the_fields_of_the_table(wrapper):
    # LlamaIndex serializes fields, which grammars cannot be; whether it parses special tokens depends on its functions;
    # its responses have one answer.
    own = {"grammar", "parse_special", "n"} if wrapper is GaCLLM else set()
    missing = set(WRAPPER_FIELDS) - own - set(wrapper.model_fields)
    assert not missing, f"add a field for {sorted(missing)} to gac_langchain/settings.py and gac_llamaindex/fields.py"
    for name in set(WRAPPER_FIELDS) - own:
        field, entry = wrapper.model_fields[name], WRAPPER_FIELDS[name]
        assert (field.annotation, field.default, field.description) == (entry.type, entry.default, entry.description)


def test_a_wrapper_without_a_field_of_the_parameters_names_it(monkeypatch):
    """As while a parameter is added."""
    monkeypatch.setattr("gac_langchain.settings.SAMPLING_FIELDS", SAMPLING_FIELDS | {"new_one"})
    with pytest.raises(AssertionError, match=r"lacks .*new_one of SamplingParams; .* gac_langchain/settings\.py"):
        ChatGaC()


def test_fields_have_a_json_schema():
    for model in (EnsembleSettings, GaCLLM):
        properties = model.model_json_schema()["properties"]
        assert properties["max_tokens"]["default"] == 256
        assert properties["gate_rule"]["description"] == WRAPPER_FIELDS["gate_rule"].description


def test_the_first_invalid_field_is_named():
    class Model(BaseModel):
        stop: str | list[str] = "x"
        other: int = 0

    with pytest.raises(ValueError, match="stop") as caught:
        Model(stop=5, other="y")
    errors = caught.value.errors()
    assert str(field_error(errors, {"stop": "Strings that end the text."})).startswith("stop cannot be 5: Input should")
    assert str(field_error(errors, {"stop": "Strings that end the text."})).endswith("(Strings that end the text.)")
    assert isinstance(field_error(errors, {"stop": None}), ConfigError)
    assert field_error(errors, {"other": None}) is None


# ---- arguments of a call


def test_arguments_are_split_by_what_they_set():
    given = {"max_tokens": 3, "weights": [1], "tools": [], "tool_choice": "auto", "model": "a"}
    arguments = split_arguments(given, other=["model"])
    assert arguments.sampling == {"max_tokens": 3, "weights": [1]}
    assert arguments.conversation == {"tools": [], "tool_choice": "auto"}
    assert arguments.other == {"model": "a"}
    with pytest.raises(UnknownArgumentError, match="'model'"):
        split_arguments(given)
    with pytest.raises(UnknownArgumentError, match="did you mean 'tool_choice'"):
        split_arguments({"tool_choise": "auto"})
    with pytest.raises(UnknownArgumentError, match="'tools'"):
        split_arguments({"tools": []}, conversation=())


@pytest.mark.parametrize(
    ("choice", "want"),
    [
        (None, None),
        (False, None),
        (True, "required"),
        ("any", "required"),
        ("required", "required"),
        ("auto", "auto"),
        ("none", "none"),
        ("clock", "clock"),
        ({"type": "function", "function": {"name": "clock"}}, "clock"),
        ({"type": "tool", "name": "clock"}, "clock"),
        ({"type": "any"}, "required"),
        ({"type": "auto"}, "auto"),
    ],
)
def test_tool_choices_of_all_frameworks(choice, want):
    assert read_tool_choice(choice, ["clock"]) == want


@pytest.mark.parametrize("choice", ["sundial", 3, [], {}, {"type": "function"}, {"function": {"name": ["clock"]}}])
def test_a_tool_choice_that_is_not_there_is_an_error(choice):
    with pytest.raises(RequestError, match=r"tool_choice must be .*tools are: clock"):
        read_tool_choice(choice, ["clock"])


# ---- answers


def output(**values):
    parts = {"text": "", "tokens": (), "finish_reason": FinishReason.STOP, "stopped_by": None, "logprobs": None}
    usage, stats = values.pop("usage", Usage(7, 2)), values.pop("stats", RequestStats())
    return RequestOutput("id", **{**parts, **values}, usage=usage, stats=stats, seed=None)


def test_cached_tokens_are_those_that_every_member_reused():
    members = {"a": MemberStats(reused_tokens=9), "b": MemberStats(reused_tokens=5)}
    counts = token_counts(output(stats=RequestStats(members=members)))
    assert (counts.prompt, counts.completion, counts.total, counts.cached) == (7, 2, 9, 5)
    assert token_counts(output(usage=Usage(3, 0), stats=RequestStats(members=members))).cached == 3
    assert token_counts(output()).cached == 0


class Tree(BaseModel):
    """A class that refers to itself."""

    branches: list[Tree]


class Leaf(BaseModel):
    color: str


def test_recursive_schemas_replace_what_frameworks_make_of_them():
    tool = {"type": "function", "function": {"name": "grow", "parameters": {"type": "object"}}}
    assert recursive_schema(Tree) == Tree.model_json_schema()
    assert with_recursive_parameters(tool, Tree)["function"] == {"name": "grow", "parameters": Tree.model_json_schema()}
    assert tool["function"]["parameters"] == {"type": "object"}
    for model in (Leaf, Tree(branches=[]), {"type": "object"}, None, print):
        assert recursive_schema(model) is None
        assert with_recursive_parameters(tool, model) is tool


def test_structured_output_enforces_and_describes_a_schema():
    schema = Leaf.model_json_schema()
    wanted = StructuredOutput.of(schema)
    assert wanted.grammar == Grammar.json_schema(schema)
    assert '"color"' in wanted.instruction
    assert StructuredOutput.of(schema, close=True).grammar == Grammar.json_schema(schema, True)
    assert StructuredOutput.of(schema, tools=True).instruction.startswith("Where you call no tool")


def test_truncated_json_is_an_error():
    assert read_json_answer('{"a": [1]}', "stop") == {"a": [1]}
    for text in ("", '{"a": [1', "[" * 100_000):
        with pytest.raises(
            AnswerError, match=r"the Leaf is not complete JSON: it ended \(length\).*raise max_tokens"
        ) as caught:
            read_json_answer(text, FinishReason.LENGTH, "the Leaf")
        assert caught.value.text == text


def test_malformed_calls_alone_are_an_error():
    broken = InvalidToolCall("1", "clock", '{"zone": "', "the call ended early")
    check_tool_calls([], [])
    check_tool_calls(["call"], [broken], required=True)
    with pytest.raises(
        AnswerError, match=r"tool 'clock' is malformed \(the call ended early\).*raise max_tokens"
    ) as caught:
        check_tool_calls([], [broken])
    assert caught.value.text == '{"zone": "'
    with pytest.raises(AnswerError, match="a tool call is malformed"):
        check_tool_calls([], [InvalidToolCall("1", None, "<", "no name")])
    with pytest.raises(AnswerError, match=r"called no tool: the answer ended \(stop\) after 'Hello'.*tool_choice"):
        check_tool_calls([], [], text="Hello", finish_reason=FinishReason.STOP, required=True)
    with pytest.raises(AnswerError, match=r"ended \(length\) after '<tool'; raise max_tokens$"):
        check_tool_calls([], [], text="<tool", finish_reason=FinishReason.LENGTH, required=True)
