"""Answers are taken apart the same whatever pieces they come in, and nothing of them is lost."""

from __future__ import annotations

import itertools
import json
import time

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gac_core.chat.answer import AnswerParser, CallPiece, InvalidPiece, ReasoningPiece, TextPiece
from gac_core.chat.jsontext import Expect, ObjectScanner

TOOLS = ("weather", "get_time")


def call(name: str = "weather", arguments: str = '{"city": "Halkus"}') -> str:
    return f'<tool_call>{{"name": {json.dumps(name)}, "arguments": {arguments}}}</tool_call>'


def parse(pieces, tools=TOOLS, **settings):
    """The parser after the pieces, and all that it gave out."""
    parser = AnswerParser(tools=tools, **settings)
    given_out = [piece for text in pieces for piece in parser.push(text)]
    return parser, given_out + parser.finish()


def facts(parser):
    """All that a parser says at the end, but for the ids, which are drawn."""
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
        assert "".join(piece.text for piece in out if isinstance(piece, TextPiece)) == parser.text
        assert "".join(piece.text for piece in out if isinstance(piece, ReasoningPiece)) == parser.reasoning
        check_calls(parser, out)


def check_calls(parser, out):
    """The pieces of each call are the call, or the beginning of what is told of a broken one."""
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
    """Letters that belong to no tag and to no head of a call come out again, each of them."""
    text = "".join(parts)
    parser, _ = parse([text], inside=inside)
    told = parser.text + parser.reasoning + "".join(i.arguments for i in (*parser.calls, *parser.invalid))
    for letter in "Ωé漢H":
        assert told.count(letter) == text.count(letter)


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
    assert parser.text == "Let me see."


@pytest.mark.parametrize(
    ("text", "said"),
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
def test_white_space_goes_only_next_to_calls(text, said):
    for pieces in ([text], list(text)):
        assert parse(pieces)[0].text == said


@pytest.mark.parametrize(
    ("text", "inside", "reasoning", "said"),
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
def test_reasoning_stands_at_the_beginning(text, inside, reasoning, said, tools):
    for pieces in ([text], list(text)):
        parser, _ = parse(pieces, tools, inside=inside)
        assert (parser.reasoning, parser.text) == (reasoning, said)


def test_reasoning_is_text_where_none_is_looked_for():
    assert parse(["<think>a</think> b"], thinking=False)[0].text == "<think>a</think> b"


@pytest.mark.parametrize(
    ("body", "name", "arguments", "error"),
    [
        ('{"name": "weather", "arguments": {"a": oops}}', "weather", '{"a": oops}}', "no value begins with 'o'"),
        ('{"name": "weather", "arguments": {"a": 01}}', "weather", '{"a": 01}}', "'01' is no number"),
        ('{"name": "weather", "arguments": {"a": "\n"}}', "weather", '{"a": "\n"}}', "control character"),
        ('{"name": "other", "arguments": {"a": 1}}', "other", '{"a": 1}', "there is no tool 'other'; tools are: get"),
        ('{"name": "weather", "arguments": "{}"}', "weather", '"{}"}', "the arguments are no object"),
        ('{"name": "weather", "arguments": 7}', "weather", "7}", "the arguments are no object"),
        ('{"name": "weather"}', "weather", '{"name": "weather"}', "it has no arguments"),
        ('{"arguments": {}}', None, "{}", "it has no name"),
        ('{"name": 3, "arguments": {}}', None, '{"name": 3, "arguments": {}}', "the name is no string but 3"),
        ('{"name": "weather", "name": "get_time"}', "weather", '{"name": "weather", "name": "get_time"}', "twice"),
        ('{"name": "weather", "arguments": {}} x', "weather", "{}} x", "'x' stands between"),
        ('["weather"]', None, '["weather"]', "'[' cannot stand there"),
        ("weather()", None, "weather()", "'w' cannot stand there"),
        ('{"name": "weather", "arguments": ' + '{"a": ' * 120, "weather", '{"a": ' * 119 + '{"a":', "nested more"),
    ],
)
def test_a_broken_call_says_why(body, name, arguments, error):
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
    assert [item.error for item in parser.invalid] == ["the arguments cannot be read as a JSON object"]


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


@settings(max_examples=500, deadline=None)
@given(text=st.lists(FRAGMENTS, max_size=8).map(lambda parts: "{" + "".join(parts) + "}"))
@example(text='{"a": [], "b": {}, "c": [1, 2], "d": -0.5e+10, "e": "\\u00e9\\n"}')
@example(text='{"a": 1,}')
@example(text='{"a" 1}')
@example(text="{1: 2}")
@example(text='{"a": [1,]}')
@example(text='{"a": [}')
def test_the_scanner_agrees_with_python(text):
    """A text is an object for the scanner if and only if Python reads it as one."""
    scanner = ObjectScanner()
    try:
        for char in text:
            scanner.push(char)
        ours = scanner.expect is Expect.NOTHING
    except ValueError:
        ours = False
    try:
        json.loads(text, parse_constant=int)
        theirs = True
    except ValueError:
        theirs = False
    assert ours == theirs
