"""Calls of tools that are cut off after their arguments."""

from __future__ import annotations

import pytest
from answers import parsed

from gac_core.chat.answer import AnswerParser
from gac_core.chat.callforms import FORMS


@pytest.mark.parametrize("closing", ["", "}", ', "id": 7', "}\n</tool_ca"])
def test_complete_arguments_are_without_the_end_of_a_tagged_call(closing):
    answer = parsed(AnswerParser(("get",)), ['<tool_call>{"name": "get", "arguments": {"a": 1}' + closing])
    assert [(call.name, call.arguments) for call in answer.invalid] == [("get", '{"a": 1}')]


@pytest.mark.parametrize("closing", ["", "}", "}\n"])
def test_complete_arguments_are_without_the_end_of_a_bare_call(closing):
    text = '{"type": "function", "function": {"name": "get", "arguments": {"a": 1}' + closing
    answer = parsed(AnswerParser(("get",), forms=FORMS), list(text))
    assert [(call.name, call.arguments) for call in answer.invalid] == [("get", '{"a": 1}')]
