"""Chat templates in the wild: each member's prompt is what its own template writes, and no word of it is lost."""

from __future__ import annotations

import json

import pytest
from chat_templates import (
    AGAIN,
    BARE,
    CALLED,
    GEMMA,
    IGNORING,
    LLAMA3,
    MARKED,
    MISTRAL,
    OPENING,
    PARTS,
    PLAIN,
    QWEN3,
    SAID,
    SYSTEM,
    TOOL,
    USER,
    form_of,
    member,
)
from conftest import SHARED
from prompts import encode_prompt, render

from gac_core.chat.conversation import Conversation, Message
from gac_core.chat.rendered_prompt import opens_thinking
from gac_core.errors import ChatTemplateError


@pytest.mark.parametrize("folder", MARKED)
@pytest.mark.parametrize("messages", PLAIN)
def test_plain_conversations_are_what_the_template_says(folder, messages):
    loaded = member(None, folder)
    expected = loaded.hf.apply_chat_template(messages, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(loaded, messages) == list(expected)
    bos = loaded.hf.bos_token_id
    assert bos is None or encode_prompt(loaded, messages).count(bos) <= 1


@pytest.mark.parametrize("template", [GEMMA, MISTRAL, IGNORING, QWEN3, LLAMA3, OPENING])
def test_small_templates_are_followed(template):
    loaded = member(template)
    messages = [USER, SAID, AGAIN]
    turns = [{"role": message.role, "content": message.content} for message in messages]
    expected = loaded.hf.apply_chat_template(turns, tokenize=True, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(loaded, messages) == list(expected)


# ---- roles that a template does not take


@pytest.mark.parametrize("template", [GEMMA, IGNORING])
def test_a_system_turn_goes_to_the_first_user_where_it_is_not_written(template):
    loaded = member(template)
    joined = [Message("user", "Be brief.\n\nWhere?"), SAID, AGAIN]
    assert render(loaded, [SYSTEM, USER, SAID, AGAIN]) == render(loaded, joined)
    assert render(loaded, [SYSTEM]) == render(loaded, [Message("user", "Be brief.")])


def test_late_system_turns_are_not_lost():
    late = [SYSTEM, Message("system", "Be kind."), USER, SAID, Message("system", "Be quick."), AGAIN]
    text = render(member(MISTRAL), late)
    assert text.endswith("[INST] Be brief.\n\nBe kind.\n\nBe quick.\n\nAnd when? [/INST]")
    assert render(member(QWEN3), late).count("<|im_start|>system") == 3


@pytest.mark.parametrize("template", [GEMMA, MISTRAL])
def test_neighbours_are_joined_only_where_roles_must_alternate(template):
    twice = [USER, AGAIN, SAID, SAID, USER]
    once = [Message("user", "Where?\n\nAnd when?"), Message("assistant", "Here.\n\nHere."), USER]
    assert render(member(template), twice) == render(member(template), once)
    assert render(member(QWEN3), twice).count("<|im_start|>user") == 3


@pytest.mark.parametrize("template", [GEMMA, MISTRAL])
def test_a_first_assistant_gets_an_empty_user_before_it(template):
    expected = render(member(template), [Message("user", ""), SAID, AGAIN])
    assert render(member(template), [SAID, AGAIN]) == expected


def test_parts_go_to_templates_that_want_them():
    assert render(member(PARTS), [SYSTEM, USER]) == "<|system|>Be brief.<|user|>Where?<|assistant|>"


def test_a_refusal_names_the_member_and_tells_what_the_template_said():
    with pytest.raises(ChatTemplateError, match="'mia' cannot render the conversation: never") as caught:
        render(member("{{ raise_exception('never') }}", name="mia"), [USER])
    assert caught.value.member == "mia"


# ---- reasoning


def test_reasoning_is_told_only_where_the_template_asks_for_it():
    thought = Message("assistant", "Here.", reasoning="Hm.")
    assert "Hm." not in render(member(QWEN3), [USER, thought, AGAIN])
    assert "Hm." not in render(member(GEMMA), [USER, thought, AGAIN])
    assert "<think>\nI need the weather.\n</think>" in render(member(QWEN3), CALLED, native=True)


def test_enable_thinking_is_passed_on():
    ends = {
        choice: render(member(QWEN3), Conversation([USER], enable_thinking=choice)).endswith("</think>\n\n")
        for choice in (None, True, False)
    }
    assert ends == {None: False, True: False, False: True}


def test_an_open_block_of_reasoning_is_seen():
    ends_so = Message("user", "What is <think>")
    for template, opened in ((OPENING, True), (QWEN3, False), (BARE, False)):
        loaded = member(template)
        assert opens_thinking(loaded, render(loaded, [ends_so])) is opened
    loaded = member(QWEN3)
    assert not opens_thinking(loaded, render(loaded, Conversation([USER], enable_thinking=False)))


# ---- tools


def test_the_form_is_judged_by_what_templates_write():
    qwen, llama, gemma = member(QWEN3), member(LLAMA3), member(GEMMA)
    assert form_of(qwen) == "native"
    assert [form_of(other) for other in (llama, gemma, member(None), member(BARE))] == ["common"] * 4
    # A template that tells tools but loses their results.
    assert form_of(member(QWEN3.replace("{{ m.content }}\n</tool_response>", "</tool_response>"))) == "common"
    assert [form_of(qwen, "common"), form_of(llama, "native")] == ["common", "native"]
    qwen.hf.chat_template = GEMMA
    assert form_of(qwen) == "common"


@pytest.mark.shared
def test_real_templates_are_judged_too():
    names = ("qwen2.5", "llama-3", "mistral-tekken", "phi-3", "gpt2")
    forms = {name: form_of(member(None, str(SHARED / "tokenizers" / name))) for name in names}
    assert forms == {"qwen2.5": "native", **dict.fromkeys(names[1:], "common")}


@pytest.mark.parametrize(
    "folder", [None, pytest.param(str(SHARED / "tokenizers" / "qwen2.5"), marks=pytest.mark.shared)]
)
def test_native_tools_go_through_the_template(folder):
    loaded = member(QWEN3) if folder is None else member(None, folder)
    turns = [
        {"role": "user", "content": "Where?"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "I need the weather.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": {"city": "Halkus"}}}
            ],
        },
        {"role": "tool", "content": "rain", "tool_call_id": "c1", "name": "weather"},
    ]
    expected = loaded.hf.apply_chat_template(
        turns, tools=[TOOL.as_openai()], tokenize=True, add_generation_prompt=True, return_dict=False
    )
    assert encode_prompt(loaded, Conversation(CALLED, [TOOL]), native=True) == list(expected)


def test_native_is_refused_where_the_template_cannot():
    with pytest.raises(ChatTemplateError, match=r"'lea' cannot.*tool_format='common'"):
        encode_prompt(member(LLAMA3, name="lea"), Conversation(CALLED, [TOOL], tool_format="native"), native=True)


@pytest.mark.parametrize("template", [GEMMA, MISTRAL, IGNORING, PARTS, QWEN3, LLAMA3, None])
@pytest.mark.parametrize("choice", ["auto", "required", "weather"])
def test_the_common_form_reaches_every_template(template, choice):
    loaded = member(template)
    text = render(loaded, Conversation([SYSTEM, *CALLED], [TOOL], tool_choice=choice))
    schema = json.dumps(TOOL.as_openai()["function"])
    assert text.index("Be brief.\n\n# Tools") < text.index(schema)
    # Some families write the system's turn in front of the last user's.
    assert template == MISTRAL or text.index(schema) < text.index("Let me see.")
    call = 'Let me see.\n<tool_call>{"name": "weather", "arguments": {"city":  "Halkus"}}</tool_call>'
    assert text.index(call) < text.index("<tool_response>\nrain\n</tool_response>")
    assert ("with a call of" in text) is (choice != "auto")
