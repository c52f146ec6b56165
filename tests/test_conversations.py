"""Conversations with tools through the engine: calls are valid, streams say what the whole says, nothing leaks."""

from __future__ import annotations

import copy
import json

import jsonschema
import pytest
from answers import parsed
from conftest import QUESTION, start
from schemas import BY_HAND, SCHEMAS

from gac_core import Conversation, FinishReason, Grammar, GrammarError, Message, RequestError, Tool, fold
from gac_core.engine.answer_form import AnswerForm

WEATHER = Tool(
    "get_weather",
    "Tells the weather of a city.",
    {
        "type": "object",
        "properties": {
            "city": {"type": "string", "maxLength": 8},
            "unit": {"enum": ["celsius", "fahrenheit"]},
            "days": {"type": "array", "items": {"type": "integer", "minimum": 0, "maximum": 6}, "maxItems": 2},
        },
        "required": ["city", "unit"],
        "additionalProperties": False,
    },
)
CLOCK = Tool("clock", "Tells the time.")
TOOLS = (WEATHER, CLOCK)
ASKED = [Message("user", "How is the weather in Rome?")]
POINT = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 9}},
    "required": ["x"],
    "additionalProperties": False,
}


def check(call):
    tool = next(tool for tool in TOOLS if tool.name == call.name)
    jsonschema.validate(call.values, dict(tool.parameters))


@pytest.mark.parametrize("asked", [{}, {"drafts": False}, {"threshold": 0.05}])
def test_required_calls_are_valid_calls(talkers, asked):
    talk = Conversation(ASKED, TOOLS, tool_choice="required")
    outputs = talkers.generate_batch([talk] * 12, temperature=1.0, max_tokens=1500, **asked)
    for output in outputs:
        assert output.finish_reason is FinishReason.TOOL_CALLS
        assert output.text == ""
        assert output.tool_calls
        assert not output.invalid_tool_calls
        assert len({call.id for call in output.tool_calls}) == len(output.tool_calls)
        for call in output.tool_calls:
            check(call)


@pytest.mark.parametrize("asked", [{}, {"drafts": False, "threshold": 0.05}])
def test_arguments_keep_to_any_schema(talkers, asked):
    # All by hand and some of those drawn: `test_grammar.py` writes texts of each.
    schemas = [schema for schema in [*BY_HAND, *SCHEMAS[len(BY_HAND) :: 8]] if "$defs" not in schema]
    tools = [
        Tool(f"tool{n}", "", {"type": "object", "properties": {"value": schema}, "required": ["value"]})
        for n, schema in enumerate(schemas)
    ]
    streams = [
        start(
            talkers,
            Conversation(ASKED, [tool], tool_choice=tool.name),
            temperature=1.0,
            seed=n,
            max_tokens=2500,
            **asked,
        )
        for n, tool in enumerate(tools)
    ]
    assert len(streams) > 40
    for stream, tool, schema in zip(streams, tools, schemas, strict=True):
        output = fold(stream)
        assert [call.name for call in output.tool_calls] == [tool.name], output
        jsonschema.Draft202012Validator(schema).validate(output.tool_calls[0].values["value"])


def test_a_named_tool_is_called_once(talkers):
    for seed in range(6):
        talk = Conversation(ASKED, TOOLS, tool_choice="clock")
        output = talkers.generate(talk, temperature=1.0, seed=seed, max_tokens=600)
        assert [call.name for call in output.tool_calls] == ["clock"]


def test_one_call_at_a_time(talkers):
    talk = Conversation(ASKED, TOOLS, tool_choice="required", parallel_tool_calls=False)
    for seed in range(6):
        assert len(talkers.generate(talk, temperature=1.0, seed=seed, max_tokens=600).tool_calls) == 1


def test_the_stream_says_what_the_whole_says(talkers):
    talk = Conversation(ASKED, TOOLS, tool_choice="required")
    chunks = list(talkers.stream(talk, temperature=1.0, seed=4, max_tokens=1500))
    output = fold(chunks)
    whole = talkers.generate(talk, temperature=1.0, seed=4, max_tokens=1500)
    assert [(c.name, c.arguments) for c in output.tool_calls] == [(c.name, c.arguments) for c in whole.tool_calls]
    pieces = [piece for chunk in chunks for piece in chunk.tool_calls]
    for index, call in enumerate(output.tool_calls):
        own = [piece for piece in pieces if piece.index == index]
        assert (own[0].id, own[0].name) == (call.id, call.name)
        assert all(piece.name is None and piece.id is None for piece in own[1:])
        assert json.loads("".join(piece.arguments for piece in own)) == call.values
    assert len(pieces) > len(output.tool_calls)


async def test_the_asynchronous_stream_says_the_same(talkers):
    talk = Conversation(ASKED, TOOLS, tool_choice="required")
    output = await talkers.agenerate(talk, temperature=1.0, seed=4, max_tokens=1500)
    whole = talkers.generate(talk, temperature=1.0, seed=4, max_tokens=1500)
    assert [c.arguments for c in output.tool_calls] == [c.arguments for c in whole.tool_calls]


def test_calls_or_an_answer_of_a_schema(talkers):
    talk = Conversation(ASKED, TOOLS)
    seen = set()
    for seed in range(24):
        output = talkers.generate(talk, temperature=1.5, seed=seed, max_tokens=1500, grammar=Grammar.json_schema(POINT))
        if output.tool_calls:
            seen.add("call")
            assert output.text == ""
            for call in output.tool_calls:
                check(call)
        else:
            seen.add("answer")
            jsonschema.validate(json.loads(output.text), POINT)
    assert seen == {"call", "answer"}
    with pytest.raises(GrammarError, match="required"):
        talkers.generate(Conversation(ASKED, TOOLS, tool_choice="required"), grammar=Grammar.json_schema(POINT))


def test_without_choice_tools_are_not_told(talkers):
    plain = talkers.generate(ASKED, max_tokens=12)
    assert talkers.generate(Conversation(ASKED, TOOLS, tool_choice="none"), max_tokens=12).tokens == plain.tokens
    assert talkers.generate(Conversation(ASKED), max_tokens=12).tokens == plain.tokens


def test_a_call_that_is_cut_off_is_reported(talkers):
    talk = Conversation(ASKED, (WEATHER,), tool_choice="required")
    output = talkers.generate(talk, max_tokens=12)
    assert output.finish_reason is FinishReason.LENGTH
    assert not output.tool_calls
    assert len(output.invalid_tool_calls) == 1


def test_schemas_that_cannot_be_kept_are_refused_before_any_work(talkers):
    bad = Tool("bad", "", {"type": "object", "not": {"required": ["a"]}})
    with pytest.raises(GrammarError, match="not"):
        talkers.generate(Conversation(ASKED, (bad,)))
    with pytest.raises(RequestError, match="nobody"):
        Conversation(ASKED, TOOLS, tool_choice="nobody")


def test_a_plain_string_is_never_taken_apart(talkers):
    grammar = Grammar.choices(['<tool_call>{"name": "clock", "arguments": {}}</tool_call>'])
    output = talkers.generate("Say: ", grammar=grammar)
    assert output.text.startswith("<tool_call>")
    assert not output.tool_calls


def test_reasoning_is_kept_apart(talkers):
    grammar = Grammar.choices(["<think>\nIt may rain.\n</think>\n\nTake a coat."])
    output = talkers.generate(ASKED, grammar=grammar)
    assert output.text == "Take a coat."
    assert output.reasoning.strip() == "It may rain."
    chunks = list(talkers.stream(ASKED, grammar=grammar))
    assert "".join(chunk.text for chunk in chunks) == output.text
    assert "".join(chunk.reasoning for chunk in chunks) == output.reasoning


def test_tokens_of_a_prompt_are_those_of_the_longest_member(ensemble):
    for prompt in ("In which town", QUESTION, Conversation(QUESTION, tools=[Tool("now", "Tells the time.")])):
        counted = [ensemble.generate(prompt, gate=name, max_tokens=1).usage.prompt_tokens for name in ensemble.names]
        assert ensemble.count_tokens(prompt) == max(counted)
    with pytest.raises(RequestError):
        ensemble.count_tokens([{"role": "oracle", "content": "x"}])


def test_copies_of_an_ensemble_are_the_ensemble(ensemble):
    assert copy.deepcopy({"held": ensemble})["held"] is ensemble


def test_an_answer_in_a_grammar_is_no_reasoning_where_the_template_has_opened_a_block():
    talk = Conversation([Message("user", "Hi")])
    bound = parsed(AnswerForm.of(talk, Grammar.json_schema({"type": "object"}), inside=True).parser(), ['{"a": 1}'])
    assert (bound.text, bound.reasoning) == ('{"a": 1}', "")
    free = parsed(AnswerForm.of(talk, None, inside=True).parser(), ["so</think>yes"])
    assert (free.text, free.reasoning) == ("yes", "so")
