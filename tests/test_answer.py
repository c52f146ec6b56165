"""Parsing of answers does not depend on how they are divided into pieces, and loses no text."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from answers import parsed
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gac_core.chat.answer import AnswerParser
from gac_core.chat.pieces import CallPiece, InvalidPiece, TextPiece

TOOLS = ("weather", "get_time")


def call(name: str = "weather", arguments: str = '{"city": "Halkus"}') -> str:
    return f'<tool_call>{{"name": {json.dumps(name)}, "arguments": {arguments}}}</tool_call>'


def parse(pieces, tools=TOOLS, **settings):
    """The parsed answer, and all of its pieces."""
    answer = parsed(AnswerParser(tools=tools, **settings), pieces)
    return answer, answer.pieces


def facts(parser):
    """The result of a parser without the ids, which are random."""
    return (
        parser.text,
        parser.reasoning,
        [(item.name, item.arguments) for item in parser.calls],
        [(item.name, item.arguments, item.error) for item in parser.invalid],
    )


def cut(text, places):
    ends = sorted({place % (len(text) + 1) for place in places} | {0, len(text)})
    return [text[start:end] for start, end in itertools.pairwise(ends)]


FRAGMENTS = st.sampled_from(
    [
        "<think>",
        "</think>",
        "<tool_call>",
        "</tool_call>",
        "<tool",
        "<",
        "\n",
        " ",
        "{",
        "}",
        '"name"',
        '"arguments": ',
        '"weather"',
        '"',
        ": ",
        ", ",
        "[1, -2.5e3]",
        "12",
        "tru",
        "null",
        "\\",
        "Halkus",
        "é漢",
        call(),
        call("get_time", "{}"),
        call("weather", '{"a": "</tool_call>", "b": [1, {"c": null}]}'),
        call("none_such"),
        '<tool_call>\n{"arguments": {"x": 1},\n "name": "get_time"}\n</tool_call>',
        '<tool_call>{"name": "weather", "arguments": {"city": oops}}</tool_call>',
        '<tool_call>{"name": "weather", "arguments": [1]}</tool_call>',
    ]
)
SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
ANSWERS = st.lists(st.one_of(FRAGMENTS, st.text(max_size=4)), max_size=12).map("".join)


@settings(max_examples=400, deadline=None)
@given(text=ANSWERS, places=st.lists(st.integers(0, 500), max_size=20), inside=st.booleans(), tools=st.booleans())
@example(text="<tool_call>{}", places=[3], inside=False, tools=True)
def test_pieces_do_not_matter(text, places, inside, tools):
    names = TOOLS if tools else ()
    whole, _ = parse([text], names, inside=inside)
    for pieces in (cut(text, places), list(text)):
        parser, out = parse(pieces, names, inside=inside)
        assert facts(parser) == facts(whole)
        check_calls(parser, out)


def check_calls(parser, out):
    """The pieces of each call are the call, or a prefix of the reported arguments of a malformed one."""
    arguments, ids, names = {}, {}, {}
    for piece in out:
        if isinstance(piece, CallPiece):
            if piece.index not in ids:
                ids[piece.index], names[piece.index] = piece.id, piece.name
                assert piece.id
            else:
                assert piece.id is None
                assert piece.name is None
            arguments[piece.index] = arguments.get(piece.index, "") + piece.arguments
    broken = {piece.index: piece.call for piece in out if isinstance(piece, InvalidPiece)}
    assert tuple(broken.values()) == parser.invalid
    for index in set(ids) & set(broken):
        assert (broken[index].id, broken[index].name) == (ids[index], names[index])
        assert broken[index].arguments.startswith(arguments[index].rstrip())
    sound = [index for index in ids if index not in broken]
    assert [(ids[i], names[i], arguments[i]) for i in sound] == [(c.id, c.name, c.arguments) for c in parser.calls]
    everyone = [*(item.id for item in parser.calls), *(item.id for item in parser.invalid)]
    assert len(set(everyone)) == len(everyone)


@settings(max_examples=300, deadline=None)
@given(parts=st.lists(st.one_of(FRAGMENTS, st.just("Ω")), max_size=12), inside=st.booleans())
def test_nothing_is_lost(parts, inside):
    """Letters outside of tags and heads of calls are all in the result."""
    text = "".join(parts)
    parser, _ = parse([text], inside=inside)
    found = parser.text + parser.reasoning + "".join(i.arguments for i in (*parser.calls, *parser.invalid))
    for letter in "Ωé漢H":
        assert found.count(letter) == text.count(letter)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=30), places=st.lists(st.integers(0, 30), max_size=5))
def test_plain_text_stays_as_it_is(text, places):
    for tools in (TOOLS, ()):
        parser, _ = parse(cut(text, places), tools)
        assert facts(parser) == (text, "", [], [])


@settings(max_examples=200, deadline=None)
@given(
    arguments=st.dictionaries(
        st.text(max_size=5),
        st.recursive(
            st.one_of(
                st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), st.text()
            ),
            lambda inner: st.one_of(
                st.lists(inner, max_size=3), st.dictionaries(st.text(max_size=3), inner, max_size=3)
            ),
            max_leaves=6,
        ),
        max_size=4,
    ),
    indent=st.sampled_from([None, 1]),
    ascii_only=st.booleans(),
    name_first=st.booleans(),
)
def test_any_json_object_is_a_calls_arguments(arguments, indent, ascii_only, name_first):
    written = json.dumps(arguments, indent=indent, ensure_ascii=ascii_only)
    members = ['"name": "weather"', f'"arguments": {written}']
    body = ", ".join(members if name_first else members[::-1])
    parser, _ = parse(list(f"<tool_call>\n{{{body}}}\n</tool_call>"))
    assert facts(parser) == ("", "", [("weather", written)], [])
    assert parser.calls[0].values == arguments


def test_a_call_streams_as_it_is_written():
    parser = AnswerParser(TOOLS)
    assert parser.push("Let me see.\n\n<tool") == [TextPiece("Let me see.")]
    assert parser.push('_call>{"name": "wea') == []
    (first,) = parser.push('ther", "argu')
    assert (first.index, first.name, first.arguments) == (0, "weather", "")
    assert parser.push('ments":  {"a":  "</tool') == [CallPiece(0, None, None, '{"a":  "</tool')]
    assert parser.push('_call>"}') == [CallPiece(0, None, None, '_call>"}')]
    assert parser.calls == ()
    assert parser.push("}\n</tool_call>\n") == []
    assert [(c.id, c.arguments) for c in parser.calls] == [(first.id, '{"a":  "</tool_call>"}')]
    assert parser.finish() == []


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (f"a\n{call()}\n{call()}\n", "a"),
        (f"\n{call()}\nb\n", "b\n"),
        (f"a {call()}\nb", "a\nb"),
        ("a <tool_calls>", "a <tool_calls>"),
        ("a\n<tool", "a\n<tool"),
        (" \n", " \n"),
        ("x <think>y</think>", "x <think>y</think>"),
    ],
)
def test_white_space_goes_only_next_to_calls(text, content):
    for pieces in ([text], list(text)):
        assert parse(pieces)[0].text == content


@pytest.mark.parametrize(
    ("text", "inside", "reasoning", "content"),
    [
        ("<think>\nHm.\n\nYes.\n</think>\n\nHalkus.", False, "Hm.\n\nYes.", "Halkus."),
        ("Hm.\n</think>\n\nHalkus.", True, "Hm.", "Halkus."),
        ("<think>Hm.</think>Halkus.", True, "Hm.", "Halkus."),
        ("\n<think>Hm. ", False, "Hm. ", ""),
        ("<think></think>Halkus.", False, "", "Halkus."),
        ("Hm.</thin", True, "Hm.</thin", ""),
        ("<thin", False, "", "<thin"),
        ("  <thought>", False, "", "  <thought>"),
        ("Hm. <tool_call>x</tool_call></think>\nA", True, "Hm. <tool_call>x</tool_call>", "A"),
    ],
)
@pytest.mark.parametrize("tools", [TOOLS, ()])
def test_reasoning_stands_at_the_beginning(text, inside, reasoning, content, tools):
    for pieces in ([text], list(text)):
        parser, _ = parse(pieces, tools, inside=inside)
        assert (parser.reasoning, parser.text) == (reasoning, content)


@pytest.mark.parametrize(
    ("body", "name", "arguments", "error"),
    [
        (
            '{"name": "weather", "arguments": {"a": oops}}',
            "weather",
            '{"a": oops}}',
            "at 'oops}}': Expecting value",
        ),
        (
            '{"name": "weather", "arguments": {"a": 01}}',
            "weather",
            '{"a": 01}}',
            "at '1}}': Expecting",
        ),
        ('{"name": "weather", "arguments": {"a": "\n"}}', "weather", '{"a": "\n"}}', "control character"),
        ('{"name": "other", "arguments": {"a": 1}}', "other", '{"a": 1}', "there is no tool 'other'; tools are: get"),
        ('{"name": "weather", "arguments": "{}"}', "weather", '"{}"}', "its arguments are not a JSON object"),
        ('{"name": "weather", "arguments": 7}', "weather", "7}", "its arguments are not a JSON object"),
        ('{"name": "weather"}', "weather", '{"name": "weather"}', "it has no arguments"),
        ('{"arguments": {}}', None, "{}", "it has no name"),
        ('{"name": 3, "arguments": {}}', None, '{"name": 3, "arguments": {}}', "its name is not a string"),
        ('{"name": "weather", "name": "get_time"}', "weather", '{"name": "weather", "name": "get_time"}', "twice"),
        ('{"name": "weather", "arguments": {}} x', "weather", "{}} x", "unexpected 'x' between"),
        ('["weather"]', None, '["weather"]', "unexpected character '['"),
        ("weather()", None, "weather()", "unexpected character 'w'"),
        ('{"name": "weather", "arguments": ' + '{"a": ' * 120, "weather", '{"a": ' * 119 + '{"a":', "nested more"),
    ],
)
def test_a_malformed_call_reports_the_reason(body, name, arguments, error):
    for pieces in ([f"<tool_call>{body}</tool_call> after"], list(f"<tool_call>{body}</tool_call> after")):
        parser, out = parse(pieces)
        (broken,) = parser.invalid
        assert (broken.name, broken.arguments) == (name, arguments)
        assert error in broken.error
        assert (parser.text, parser.calls) == ("after", ())
        check_calls(parser, out)


def test_a_call_cut_off_is_invalid():
    text = call()
    for end in range(len("<tool_call>"), len(text)):
        parser, out = parse([text[:end]])
        assert [item.error for item in parser.invalid] == ["the text ended inside the call"]
        assert parser.calls == ()
        check_calls(parser, out)


def test_an_integer_that_python_cannot_read_makes_no_call():
    parser, _ = parse([call(arguments='{"a": ' + "9" * 5000 + "}")])
    assert [item.name for item in parser.invalid] == ["weather"]
    assert "Exceeds the limit" in parser.invalid[0].error


def test_time_grows_with_the_text_only():
    """Eight times the text takes far less than the 64 times that quadratic work would."""
    spent = []
    for size in (4_000, 32_000):
        text = "<think>" + "a \n" * size + "</think>" + "b <\n" * size + call(arguments=json.dumps({"a": "c" * size}))
        start = time.process_time()
        parser, _ = parse(list(text + "\n" * size))
        spent.append(time.process_time() - start)
        assert len(parser.calls) == 1
    assert spent[1] < 30 * spent[0]


def is_call(text):
    """Whether Python reads a text as a call: an object with a tool's name and one object of arguments."""

    def once(pairs):
        return dict(pairs), [key for key, _ in pairs]

    try:
        value, keys = json.loads(text, object_pairs_hook=once, parse_constant=int)
    except (TypeError, ValueError):
        return False
    arguments = [value[key] for key in ("arguments", "parameters") if key in value]
    is_object = len(arguments) == 1 and isinstance(arguments[0], tuple)
    return len(keys) == len(value) and value.get("name") in TOOLS and is_object


WORDS = (
    '"name":  "weather" "arguments":  "parameters":  {} {"a":[1,{"b":"}\\"{"}]} [] ,  : "id" -1.5e3 01 NaN tru " } {'
)
PARTS = st.sampled_from([*WORDS.split(" "), '"\\u00e9"', '"\\x"', "\n"])


@settings(max_examples=500, deadline=None)
@given(text=st.lists(PARTS, max_size=10).map(lambda parts: "{" + "".join(parts) + "}"))
@example(text='{"name": "weather", "id": -1.5e3, "arguments": {"a": [1, {"b": "}\\"{"}]}}')
@example(text='{"parameters": {}\n, "name": "weather"}')
@example(text='{"name": "weather", "arguments": {},}')
@example(text='{"name": "weather" "arguments": {}}')
@example(text='{"name": "weather", "arguments": {"a": NaN}}')
@example(text='{"name": "weather", "arguments": {}, "parameters": {}}')
@example(text='{"name": "weather", "arguments": {} {}}')
@example(text='{"name": "weather" "weather", "arguments": {}}')
def test_a_call_is_what_python_reads_as_one(text):
    for pieces in ([f"<tool_call>{text}</tool_call>"], list(f"<tool_call>{text}</tool_call>")):
        answer, out = parse(pieces)
        assert bool(answer.calls) == is_call(text)
        assert len(answer.calls) + len(answer.invalid) == 1
        check_calls(answer, out)
