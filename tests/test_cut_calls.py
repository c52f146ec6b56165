"""Calls of tools that are cut off after their arguments."""

from __future__ import annotations

import pytest
from answers import parsed

from gac_core.chat.answer import AnswerParser
from gac_core.chat.callforms import FORMS
from gac_core.chat.pieces import CallPiece


@pytest.mark.parametrize("closing", ["", "}", ', "id": 7', "}\n</tool_ca"])
def test_complete_arguments_are_without_the_end_of_a_tagged_call(closing):
    answer = parsed(AnswerParser(("get",)), ['<tool_call>{"name": "get", "arguments": {"a": 1}' + closing])
    assert [(call.name, call.arguments) for call in answer.invalid] == [("get", '{"a": 1}')]


@pytest.mark.parametrize("closing", ["", "}", "}\n"])
def test_complete_arguments_are_without_the_end_of_a_bare_call(closing):
    text = '{"type": "function", "function": {"name": "get", "arguments": {"a": 1}' + closing
    answer = parsed(AnswerParser(("get",), forms=FORMS), list(text))
    assert [(call.name, call.arguments) for call in answer.invalid] == [("get", '{"a": 1}')]


@pytest.mark.parametrize("begin", ['<tool_call>{"name": "get", "arguments": ', '{"name": "get", "arguments": '])
@pytest.mark.parametrize("arguments", ['{"a": ', '{"a": 1,\n ', '{"a": "x '])
def test_arguments_that_are_cut_off_are_those_of_the_pieces(begin, arguments):
    """White space at the end has been sent before it is known that the call ends there."""
    answer = parsed(AnswerParser(("get",), forms=FORMS), list(begin + arguments))
    assert "".join(piece.arguments for piece in answer.pieces if isinstance(piece, CallPiece)) == arguments
    assert [call.arguments for call in answer.invalid] == [arguments]
