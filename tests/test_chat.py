"""Messages, tools and conversations are checked when they are made, and say what to do about it."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED
from prompts import render
from transformers import AutoTokenizer

from gac_core.chat.conversation import Conversation, Message, as_conversation, as_messages
from gac_core.chat.tools import Tool, ToolCall
from gac_core.errors import EmptyPromptError, RequestError
from gac_core.tokenization.tokenizer import MemberTokenizer

USER = Message("user", "Where?")
WEATHER, CLOCK = Tool("weather", "Tells the weather."), Tool("clock", "Tells the time.")
OPENAI_CALL = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"a": 1}'}}


@pytest.fixture(scope="module")
def ash():
    return MemberTokenizer(AutoTokenizer.from_pretrained(EMBEDDED[0]), "ash")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Tool("", "x"), "the name of a tool must be 1 to 64 letters.*not ''"),
        (lambda: Tool("get weather", "x"), "not 'get weather'"),
        (lambda: Tool("a" * 65, "x"), "1 to 64"),
        (lambda: Tool("a\n", "x"), "1 to 64"),
        (lambda: Tool("a", 3), "description of tool 'a' must be a string, not 3"),
        (lambda: Tool("a", "x", []), "parameters of tool 'a' must be a JSON schema"),
        (lambda: Tool("a", "x", {"type": "string"}), "type 'object', not 'string'; wrap"),
        (lambda: Tool("a", "x", {"default": {1, 2}}), "cannot be written as JSON"),
        (lambda: Tool.from_openai({"name": "a"}), "a tool must have the form"),
        (lambda: ToolCall("c", "a", "[1]"), "call 'c' of tool 'a' must be the text of a JSON object, not '\\[1\\]'"),
        (lambda: ToolCall("c", "a", {"x": 1}), "use json.dumps"),
        (lambda: ToolCall("", "a", "{}"), "the id of a tool call must be a non-empty string"),
        (lambda: ToolCall("c", None, "{}"), "the name of a tool call"),
        (lambda: ToolCall.from_openai({"name": "a", "args": {}}), "a tool call must have the form"),
        (lambda: Message("robot", "x"), "role must be one of 'system', 'user', 'assistant', 'tool', not 'robot'"),
        (lambda: Message("user", None), "must be a string or a list of parts, not NoneType"),
        (lambda: Message("user", b"x"), "not bytes"),
        (
            lambda: Message("user", [{"type": "input_audio", "input_audio": {}}]),
            "a part of type 'input_audio'; only parts of type 'text'",
        ),
        (lambda: Message("user", [{"type": "text"}]), "must have a string as its 'text'"),
        (
            lambda: Message("user", "x", tool_calls=[OPENAI_CALL]),
            "tool_calls is allowed in messages of role 'assistant' only",
        ),
        (lambda: Message("assistant", "x", tool_calls={"id": 1}), "must be a list of calls"),
        (
            lambda: Message("assistant", "x", tool_call_id="c"),
            "tool_call_id is allowed in messages of role 'tool' only",
        ),
        (lambda: Message("user", "x", reasoning="hm"), "reasoning is allowed in messages of role 'assistant' only"),
        (lambda: Message("user", "x", name=3), "name must be a string or None, not 3"),
        (lambda: Conversation([USER], [WEATHER, WEATHER]), "two tools have the name 'weather'; rename one"),
        (lambda: Conversation([USER], [WEATHER], "clock"), "the name of a tool, not 'clock'; the tools are: weather"),
        (lambda: Conversation([USER], tool_choice="required"), "'required' needs at least one tool"),
        (lambda: Conversation([USER], tool_format="xml"), "one of 'auto', 'common', 'native', not 'xml'"),
        (lambda: Conversation([USER], parallel_tool_calls="no"), "must be True or False, not 'no'"),
        (lambda: Conversation([USER], enable_thinking="no"), "must be True, False or None, not 'no'"),
        (lambda: Conversation([USER], WEATHER), "tools must be a list"),
        (lambda: Conversation("Where?"), "a list of messages, not 'Where\\?'"),
        (lambda: Conversation(USER), r"a list of messages, not Message\("),
        (lambda: as_messages([{"role": "user", "content": "x", "mood": 1}]), "its keys are 'role', 'content', 'mood'"),
        (lambda: as_messages([{"role": "user"}]), "must have the keys 'role' and 'content'"),
    ],
)
def test_wrong_values_are_refused(make, message):
    with pytest.raises(RequestError, match=message):
        make()


def test_no_message_is_no_conversation():
    with pytest.raises(EmptyPromptError):
        Conversation([])


def test_openai_forms_are_taken():
    parameters = {"type": "object", "properties": {"a": {"type": "integer"}}}
    form = {"type": "function", "function": {"name": "weather", "description": "x", "parameters": parameters}}
    assert Tool.from_openai(form) == Tool("weather", "x", parameters)
    assert Tool.from_openai(form).as_openai() == form
    assert Tool.from_openai({"type": "function", "function": {"name": "a"}}) == Tool("a")
    talk = Conversation(
        [
            {"role": "user", "content": [{"type": "text", "text": "Wh"}, "ere?"]},
            {"role": "assistant", "content": None, "tool_calls": [OPENAI_CALL]},
            {"role": "tool", "content": "rain", "tool_call_id": "c1"},
        ],
        [form],
    )
    call = ToolCall("c1", "weather", '{"a": 1}')
    assert talk.messages == (USER, Message("assistant", "", (call,)), Message("tool", "rain", tool_call_id="c1"))
    assert call.values == {"a": 1}
    assert talk.offered_tools == (Tool("weather", "x", parameters),)


def test_a_string_is_no_conversation():
    assert as_conversation("Where?") is None
    assert as_conversation([USER]) == Conversation([USER])
    talk = Conversation([USER], [WEATHER])
    assert as_conversation(talk) is talk


def test_members_are_told_what_they_may_do(ash):
    def rendered(**settings):
        return render(ash, Conversation([USER], [WEATHER, CLOCK], **settings))

    assert "answer in plain text. You may make several calls" in rendered()
    assert "Make only one call at a time." in rendered(parallel_tool_calls=False)
    assert "with a call of a tool now" in rendered(tool_choice="required")
    assert "with a call of the tool clock now, not in plain text. Make only one call" in rendered(tool_choice="clock")
    assert rendered(tool_choice="none") == render(ash, [USER])


def test_neighbouring_results_share_a_turn_in_the_order_of_the_calls(ash):
    calls = (ToolCall("c1", "weather", "{}"), ToolCall("c2", "clock", '{"zone":"CET"}'))
    late, early = (Message("tool", text, tool_call_id=i) for text, i in (("noon", "c2"), ("rain", "c1")))
    text = render(ash, [USER, Message("assistant", "", calls), late, early, Message("user", "So?")])
    assert (
        "<|im_start|>assistant\n"
        '<tool_call>{"name": "weather", "arguments": {}}</tool_call>\n'
        '<tool_call>{"name": "clock", "arguments": {"zone":"CET"}}</tool_call><|im_end|>\n'
        "<|im_start|>user\n<tool_response>\nrain\n</tool_response>\n"
        "<tool_response>\nnoon\n</tool_response><|im_end|>\n"
        "<|im_start|>user\nSo?<|im_end|>"
    ) in text


def test_results_without_known_ids_keep_their_order(ash):
    results = [Message("tool", "noon", tool_call_id="c2"), Message("tool", "rain")]
    text = render(ash, [USER, Message("assistant", "Wait.", (ToolCall("c2", "clock", "{}"),)), *results])
    assert text.index("noon") < text.index("rain")
