"""Calls without tags: what the grammar lets through as calls is what the parser reads, and all else stays text."""

from __future__ import annotations

import json
import random

import jsonschema
import numpy as np
import pytest
from answers import parsed
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper

from gac_core import Grammar
from gac_core.chat.answer import AnswerParser
from gac_core.chat.callforms import BARE_FORM, FORMS
from gac_core.chat.pieces import CallPiece

TOOLS = {
    "get_weather": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 6}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city"],
        "additionalProperties": False,
    },
    "get": {"type": "object", "properties": {}, "additionalProperties": False},
}
ROME = '{"city": "Rome"}'
ONE = [("get_weather", ROME)]
CALLS = {
    '{"name": "get_weather", "arguments": {"city": "Rome"}}': ONE,
    '\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n': ONE,
    '{"name": "get_weather", "parameters": {"city": "Rome"}}': ONE,
    '{"type": "function", "name": "get_weather", "parameters": {"city": "Rome"}}': ONE,
    '{"function": "get_weather", "arguments": {"city": "Rome"}}': ONE,
    '{"type": "function", "function": {"name": "get_weather", "arguments": {"city": "Rome"}}}': ONE,
    '{\n  "name": "get_weather",\n  "arguments": {"city": "Rome"}\n}': ONE,
    '```json\n{\n  "name": "get_weather",\n  "arguments": {"city": "Rome"}\n}\n```': ONE,
    '```\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n```\n': ONE,
    '<tools>\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n</tools>': ONE,
    '<function_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</function_call>': ONE,
    '<function=get_weather>{"city": "Rome"}</function>': ONE,
    '[TOOL_CALLS]get_weather[ARGS]{"city": "Rome"}': ONE,
    '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Rome"}}]': ONE,
    '[{"name": "get_weather", "arguments": {"city": "Rome"}}, {"name": "get", "arguments": {}}]': [*ONE, ("get", "{}")],
    '```json\n[{"name": "get", "arguments": {}},\n {"name": "get_weather", "arguments": {"city": "Rome"}}]\n```': [
        ("get", "{}"),
        *ONE,
    ],
    '{"name": "get", "arguments": {}}\n{"name": "get_weather", "parameters": {"city": "Rome"}}': [("get", "{}"), *ONE],
    '{"name": "get", "parameters": {}}; {"name": "get", "parameters": {}}': [("get", "{}")] * 2,
    '<think>\nHm: {"name": "get"}\n</think>\n\n{"name": "get_weather", "arguments": {"city": "Rome"}}': ONE,
    '<tool_call>{"name": "get_weather", "arguments": {"city": "Rome"}}</tool_call>': ONE,
}
TEXTS = [
    "The weather is fine.",
    '{"name": "Ada", "arguments": {"city": "Rome"}}',
    '{"city": "Rome", "name": "get_weather"}',
    '[{"name": "Ada"}, {"name": "get_weather", "arguments": {}}]',
    '```json\n{"city": "Rome"}\n```',
    '```python\n{"name": "get_weather"}\n```',
    'Write:\n```json\n{"name": "get_weather", "arguments": {"city": "Rome"}}\n```\nand wait.',
    'One writes {"name": "get_weather", "arguments": {}} to ask.',
    "{" + '"a": {' * 5,
    "def f():\n    return {'name': 'get_weather'}",
    "<tools>",
    "[TOOL_CALLS]",
    '{"name": "get_weathers", "arguments": {}}',
    '<think>{"name": "get", "arguments": {}}',
]


def spell(text):
    return list(text if isinstance(text, bytes) else text.encode())


spell.eos_token_id, spell.bos_token_id, spell.special_token_ids = 256, None, [256]
spell.tokens = [*(bytes([value]) for value in range(256)), b"\xff<end>"]
BYTES = LLTokenizer(TokenizerWrapper(spell))


def matcher(**settings):
    return LLMatcher(BYTES, Grammar.tool_calls(TOOLS, **settings).source)


def parse(pieces, **settings):
    answer = parsed(AnswerParser(TOOLS, forms=FORMS, **settings), pieces)
    return answer, answer.pieces


def called(parser):
    return [(call.name, call.arguments) for call in parser.calls]


@pytest.mark.parametrize("text", CALLS)
def test_calls_in_every_form(text):
    grammar = matcher()
    assert grammar.try_consume_tokens(spell(text)) == len(text)
    assert grammar.is_accepting()
    for pieces in ([text], list(text), [text[:9], text[9:31], text[31:]]):
        parser, out = parse(pieces)
        assert called(parser) == CALLS[text]
        assert (parser.text, parser.invalid) == ("", ())
        for index, call in enumerate(parser.calls):
            own = [piece for piece in out if isinstance(piece, CallPiece) and piece.index == index]
            assert [piece.name for piece in own] == [call.name, *[None] * (len(own) - 1)]
            assert "".join(piece.arguments for piece in own) == call.arguments


@pytest.mark.parametrize("text", TEXTS)
def test_other_texts_stay_text(text):
    grammar = matcher()
    assert grammar.try_consume_tokens(spell(text)) == len(text)
    assert grammar.is_accepting()
    for pieces in ([text], list(text)):
        parser, _ = parse(pieces)
        assert (parser.text or parser.reasoning) == text.removeprefix("<think>")
        assert (parser.calls, parser.invalid) == ((), ())


HEADS = [
    '{"name": "get_weather"',
    '{"name": "get"',
    '{\n  "type": "function",\n  "function": {\n    "name": "get_weather"',
    '```json\n{\n  "name": "get_weather"',
    '[{"name": "get_weather"',
    '```json\n[{"name": "get_weather"',
    '<tools>{"function": "get_weather"',
    "<function=get_weather>",
    "[TOOL_CALLS]get_weather[ARGS]",
    'Let me see.\n<tool_call>{"name": "get_weather"',
    '<think>a</think>{"name": "get_weather"',
]


def allowed(grammar):
    words = np.zeros((len(spell.tokens) + 31) // 32, np.int32)
    grammar.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)
    return np.flatnonzero(np.unpackbits(words.view(np.uint8), bitorder="little", count=len(spell.tokens)))


def walk(grammar, head, draw):
    """Goes on from a head at random, in favour of what closes and of letters, until the grammar ends it."""
    data = bytearray(head.encode())
    assert grammar.try_consume_tokens(list(data)) == len(data)
    for _ in range(3000):
        choices = [int(token) for token in allowed(grammar)]
        closing = [token for token in choices if token == 256 or token in b'"}]`']
        token = draw.choice(closing if closing and draw.random() < 0.5 else choices)
        if token == 256:
            break
        data.append(token)
        assert grammar.consume_token(token)
    else:
        raise AssertionError("it never ended")
    return data.decode()


@pytest.mark.parametrize("parallel", [True, False])
@pytest.mark.parametrize("head", HEADS)
def test_a_call_that_began_becomes_a_valid_one(head, parallel):
    for seed in range(12):
        text = walk(matcher(parallel=parallel), head, random.Random(seed))
        parser, _ = parse(list(text))
        assert parser.calls, text
        assert not parser.invalid, text
        assert parallel or len(parser.calls) == 1
        for call in parser.calls:
            jsonschema.validate(call.values, TOOLS[call.name])


@pytest.mark.parametrize("text", [text for text in CALLS if "<tool_call>" not in text])
def test_a_call_without_tags_that_is_cut_off_is_invalid(text):
    name, arguments = CALLS[text][0]
    named = text.index(name, text.find("</think>") + 1) + len(name)
    named = text.find("[ARGS]", named) + len("[ARGS]") if "[ARGS]" in text else named + 1
    for cut in range(named, text.index(arguments, named) + len(arguments)):
        parser, _ = parse(list(text[:cut]))
        assert [(call.name, call.error) for call in parser.invalid] == [(name, "the text ended inside the call")]
        assert (parser.calls, parser.text) == ((), "")


def test_the_second_call_that_is_cut_off_is_reported():
    text = '[{"name": "get", "arguments": {}}, {"name": "get_weather", "arguments": {"city": "Rome"}}]'
    for cut in range(text.index(", {") + 4, text.index("Rome")):
        parser, _ = parse(list(text[:cut]))
        assert called(parser) == [("get", "{}")]
        assert [call.error for call in parser.invalid] == ["the text ended inside the call"]
        assert parser.text == ""


def test_an_open_frame_around_whole_calls_is_no_error():
    text = '```json\n[{"name": "get", "arguments": {}}]\n```'
    for cut in range(text.index("}}") + 2, len(text)):
        parser, _ = parse(list(text[:cut]))
        assert (called(parser), parser.invalid, parser.text) == ([("get", "{}")], (), "")


def test_text_behind_calls_is_kept():
    """The grammar ends such an answer; whatever comes nevertheless is not lost."""
    for text in (f"{next(iter(CALLS))} So.", f"```json\n{next(iter(CALLS))}\n```\nSo."):
        parser, _ = parse(list(text))
        assert (called(parser), parser.text) == (ONE, "So.")


def test_errors_of_a_call_without_tags():
    for text, error in (
        ('{"name": "get_weather", "arguments": {"city": oops}} x', "invalid JSON at 'oops}': Expecting value"),
        ('{"name": "get_weather", "arguments": {}, "id": 1} x', "unexpected ',' between"),
    ):
        parser, _ = parse(list(text))
        assert error in parser.invalid[0].error
        assert parser.invalid[0].arguments == text.partition('"arguments": ')[2]


# ---- beside an answer of a given form


@pytest.mark.parametrize(
    ("schema", "text", "is_call"),
    [
        ({"type": "object", "properties": {"year": {"type": "integer"}}}, '{"year": 1}', False),
        ({"type": "object", "properties": {"name": {"type": "string"}}}, '{"name": "get"}', False),
        ({"type": "object", "properties": {"year": {"type": "integer"}}}, next(iter(CALLS)), True),
        ({"type": "object", "properties": {"name": {"type": "string"}}}, next(iter(CALLS)), True),
    ],
)
def test_calls_without_tags_beside_a_schema(schema, text, is_call):
    grammar = matcher(answer=Grammar.json_schema({**schema, "required": list(schema["properties"])}))
    assert grammar.try_consume_tokens(spell(text)) == len(text)
    assert grammar.is_accepting()
    parser, _ = parse(list(text))
    assert bool(parser.calls) is is_call


def test_definitions_of_arguments_hold_without_tags_too():
    place = {"$defs": {"place": {"enum": ["Rome"]}}, "type": "object", "properties": {"at": {"$ref": "#/$defs/place"}}}
    answer = Grammar.json_schema({"type": "object", "properties": {"year": {"const": 1}}, "required": ["year"]})
    source = Grammar.tool_calls({"go": {**place, "required": ["at"]}}, answer=answer).source
    text = '{"name": "go", "arguments": {"at": "Rome"}}'
    grammar = LLMatcher(BYTES, source)
    assert grammar.try_consume_tokens(spell(text)) == len(text)
    wrong = LLMatcher(BYTES, source)
    assert wrong.try_consume_tokens(spell(text.replace("Rome", "Oslo"))) < len(text)


# ---- reasoning


def test_reasoning_is_free_and_may_precede_calls():
    for inside, opening in ((False, "<think>"), (True, "")):
        text = f'{opening}<tool_call> {{"name": "get" </think>\n\n{next(iter(CALLS))}'
        grammar = matcher(inside=inside)
        assert grammar.try_consume_tokens(spell(text)) == len(text)
        parser, _ = parse(list(text), inside=inside)
        assert called(parser) == ONE
        assert parser.reasoning == '<tool_call> {"name": "get"'
    required = matcher(inside=True, required=True)
    text = 'Hm.</think>\n\n<tool_call>{"name": "get", "arguments": {}}</tool_call>'
    assert required.try_consume_tokens(spell(text)) == len(text)
    assert required.is_accepting()


# ---- repeated calls


def tagged(name, arguments):
    return f'<tool_call>{{"name": "{name}", "arguments": {json.dumps(arguments)}}}</tool_call>'


def test_repeated_calls_are_dropped():
    rome, oslo = {"city": "Rome"}, {"city": "Oslo"}
    text = "\n".join(
        tagged(*call)
        for call in [("get_weather", rome), ("get_weather", rome), ("get", {}), ("get_weather", oslo), ("get", {})]
    )
    for pieces in ([text], list(text)):
        parser, out = parse(pieces, distinct=True)
        assert called(parser) == [*ONE, ("get", "{}"), ("get_weather", '{"city": "Oslo"}')]
        assert len(parse(pieces)[0].calls) == 5
        arguments = {}
        for piece in out:
            arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
        assert list(arguments.items()) == list(enumerate(call.arguments for call in parser.calls))


def test_calls_are_compared_by_their_values():
    same = tagged("get_weather", {"city": "é", "days": 1}), tagged("get_weather", {"days": 1, "city": "é"})
    assert len(parse(["".join(same)], distinct=True)[0].calls) == 1
    for one, other in ((1, True), (1, "1"), (1, 2), ([1, 2], [2, 1]), (None, 0)):
        text = tagged("get", {"a": one}) + tagged("get", {"a": other})
        assert len(parse([text], distinct=True)[0].calls) == 2


def test_a_call_of_another_tool_is_not_held_back():
    parser = AnswerParser(TOOLS, distinct=True)
    parser.push(tagged("get", {}))
    assert parser.push(tagged("get_weather", {"city": "Rome"})[:-20])
    assert parser.push("Rome") == []


def test_a_repeated_call_that_is_cut_off_is_invalid():
    parser, out = parse([tagged("get", {}) + tagged("get", {})[:-14]], distinct=True)
    assert called(parser) == [("get", "{}")]
    assert [call.name for call in parser.invalid] == ["get"]
    assert out[-1].index == 1


def test_beside_an_answer_in_json_only_the_form_that_the_grammar_allows_is_a_call():
    own = '{"name": "add", "parameters": {"a": 1}, "why": "x"}'
    answer = parsed(AnswerParser(["add"], forms=(BARE_FORM,)), [own])
    assert (answer.text, answer.calls, answer.invalid) == (own, (), ())
    answer = parsed(AnswerParser(["add"], forms=(BARE_FORM,)), ['{"name": "add", "arguments": {"a": 1}}'])
    assert [call.values for call in answer.calls] == [{"a": 1}]
