"""Values of prompts, tools, grammars and parameters are checked by name and quoted briefly."""

from __future__ import annotations

import asyncio

import pytest
from conftest import QUESTION
from fuzzing import DEEP_LIST, HUGE, LONG

from gac_core import (
    Conversation,
    Grammar,
    GrammarError,
    Message,
    RequestError,
    Tool,
)
from gac_langchain import ChatGaC


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Grammar.json_schema({"$defs": 3}), "JSON schema"),
        (lambda: Grammar.json_schema("[" * 100_000), "nested more than 100 deep"),
        (lambda: Grammar.json_schema({"items": DEEP_LIST}), "nested more than 100 deep"),
        (lambda: Grammar.json_schema({"minimum": HUGE}), "JSON schema"),
        (lambda: Grammar.json_schema({"x": {1, 2}}), "JSON schema"),
        (lambda: Grammar.json_schema(3), "JSON schema"),
        (lambda: Grammar.regex(3), "regular expression"),
        (lambda: Grammar.regex("a\ud800"), "regular expression.*surrogate"),
        (lambda: Grammar.lark_grammar(" "), "Lark grammar"),
        (lambda: Grammar.lark_grammar(None), "Lark grammar"),
        (lambda: Grammar.choices(3), "choices"),
        (lambda: Grammar.choices({"a": 1}), "choices"),
        (lambda: Grammar.choices(["a", 3]), "choices"),
        (lambda: Grammar.choices([]), "choices"),
        (lambda: Grammar.tool_calls([1]), "tools must be a mapping"),
        (lambda: Grammar.tool_calls({3: {}}), "name of a tool"),
        (lambda: Grammar.tool_calls({"a": {"$defs": 3}}), "tool 'a'"),
        (lambda: Grammar.tool_calls({"a": {}}, required="yes"), "required"),
        (lambda: Grammar.tool_calls({"a": {}}, answer="x"), "answer"),
        (lambda: Grammar(3, "start: x"), "kind"),
        (lambda: Grammar("lark", None), "lark"),
    ],
)
def test_grammars_are_checked(make, words):
    with pytest.raises(GrammarError, match=words) as caught:
        make()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: Tool(LONG), "name of a tool"),
        (lambda: Tool("a", LONG.encode()), "description"),
        (lambda: Tool("a", parameters=[1]), "parameters"),
        (lambda: Tool("a", parameters={"x": DEEP_LIST}), "parameters"),
        (lambda: Tool("a", parameters={"x": float("nan")}), "parameters"),
        (lambda: Tool("a", parameters={"type": HUGE}), "parameters"),
        (lambda: Tool.from_openai([LONG]), "a tool must have the form"),
        (lambda: Message(["user"], "x"), "role"),
        (lambda: Message("user", 3), "content"),
        (lambda: Message("user", [3]), "content"),
        (lambda: Message("user", [{"type": LONG}]), "content"),
        (lambda: Message("assistant", "x", tool_calls=[LONG]), "tool call"),
        (lambda: Message("assistant", "x", tool_calls=3), "tool_calls"),
        (lambda: Message("user", "x", name=LONG.encode()), "name"),
        (lambda: Conversation(3), "list of messages"),
        (lambda: Conversation([HUGE]), "list of messages"),
        (lambda: Conversation([{"role": "user", HUGE: 1}]), "keys"),
        (lambda: Conversation(QUESTION, tools=3), "tools"),
        (lambda: Conversation(QUESTION, tools=[LONG]), "tool"),
        (lambda: Conversation(QUESTION, tool_choice=LONG), "tool_choice"),
        (lambda: Conversation(QUESTION, tool_format=["auto"]), "tool_format"),
        (lambda: Conversation(QUESTION, parallel_tool_calls=1), "parallel_tool_calls"),
        (lambda: Conversation(QUESTION, enable_thinking=1), "enable_thinking"),
    ],
)
def test_messages_and_tools_are_checked(make, words):
    with pytest.raises(RequestError, match=words) as caught:
        make()
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("prompts", [None, "hello", 3, {"role": "user"}, b"hello"])
def test_batches_are_lists(ensemble, prompts):
    with pytest.raises(RequestError, match="prompts must be a list"):
        ensemble.generate_batch(prompts)
    with pytest.raises(RequestError, match="prompts must be a list"):
        asyncio.run(ensemble.agenerate_batch(prompts))


def test_parameters_in_a_wrong_form_are_refused(ensemble):
    with pytest.raises(RequestError, match="params must be a SamplingParams"):
        ensemble.generate("Hi", {"max_tokens": 3})


@pytest.mark.parametrize("tools", [[3], [None], ["weather"], 3, "weather", {"name": "x"}])
def test_what_is_no_tool_for_langchain_is_named_with_a_remedy(ensemble, tools):
    with pytest.raises(RequestError, match=r"tool.*(give a function|list of tools|has the form)"):
        ChatGaC(ensemble=ensemble).bind_tools(tools)
