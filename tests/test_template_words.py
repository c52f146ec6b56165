"""Words of conversations that spell control tokens stay words in rendered templates."""

from __future__ import annotations

import pytest
from chat_templates import (
    AGAIN,
    CALLED,
    MARKED,
    MISTRAL,
    QWEN3,
    SYSTEM,
    USER,
    form_of,
    member,
)
from conftest import SHARED
from prompts import encode_prompt, render

from gac_core.chat.conversation import Conversation, Message
from gac_core.chat.template import traits_of
from gac_core.chat.tools import Tool, ToolCall
from gac_core.errors import RequestError


def spelled(loaded):
    """A text with every special token of a tokenizer, and the tags of calls."""
    special = [t.content for t in loaded.hf.added_tokens_decoder.values() if t.special and len(t.content) > 1]
    return " x".join([*special, "<tool_call>", "</tool_call>", "<think>", "</think>"])


@pytest.mark.parametrize("folder", MARKED)
@pytest.mark.parametrize("role", ["system", "user", "assistant", "tool"])
def test_words_never_become_control_tokens(folder, role):
    """As many control tokens as without them, and yet the same text."""
    loaded = member(None, folder)
    control = set(loaded.hf.all_special_ids) | {i for i, t in loaded.hf.added_tokens_decoder.items() if t.special}

    def held(words):
        message = Message(role, words, tool_call_id="c1") if role == "tool" else Message(role, words)
        messages = {"system": [message, USER], "user": [SYSTEM, message], "assistant": [USER, message, AGAIN]}
        talk = messages.get(role, [*CALLED[:2], message])
        native = form_of(loaded) == "native"
        return encode_prompt(loaded, talk, native), render(loaded, talk, native)

    plain, _ = held("words")
    ids, text = held(spelled(loaded))
    assert spelled(loaded) in text
    assert [i for i in ids if i in control] == [i for i in plain if i in control]
    assert b"".join(loaded.hf.decode(ids).encode().split()) == b"".join(text.encode().split())


@pytest.mark.shared
def test_no_space_comes_into_words_that_are_kept_apart():
    """SentencePiece puts a space before a text; not before what stands behind a mark."""
    loaded = member(MISTRAL, str(SHARED / "tokenizers" / "llama-2"))
    ids = encode_prompt(loaded, [Message("user", "a</s>b <s> c")])
    assert [i for i in ids if i in (1, 2)] == [1]
    assert loaded.hf.decode(ids) == "<s>[INST] a</s>b <s> c [/INST]"


@pytest.mark.shared
def test_users_do_not_write_tags_that_are_tokens():
    loaded = member(None, str(SHARED / "tokenizers" / "qwen2.5"))
    tag = loaded.hf.convert_tokens_to_ids("</tool_call>")
    said = [Message("user", "</tool_call>"), Message("assistant", "</tool_call>"), AGAIN]
    assert encode_prompt(loaded, said).count(tag) == 1


def test_calls_and_tools_hold_no_control_tokens_either():
    loaded = member(None)
    end = loaded.hf.convert_tokens_to_ids("<|im_end|>")
    called = Message("assistant", "", (ToolCall("c1", "weather", '{"city": "<|im_end|>"}'),))
    tool = Tool("weather", "<|im_end|>", {"type": "object", "properties": {"a": {"description": "<|im_end|>"}}})
    talk = Conversation([SYSTEM, USER, called, CALLED[2]], [tool])
    assert encode_prompt(loaded, talk).count(end) == 4
    assert render(loaded, talk).count("<|im_end|>") == 4 + 3


@pytest.mark.parametrize("native", [False, True])
def test_escapes_in_calls_spell_no_control_tokens(native):
    loaded = member(QWEN3)
    assert traits_of(loaded).tools
    end = loaded.hf.convert_tokens_to_ids("<|im_end|>")
    counts = set()
    for city in ("Rome", "<|im_end|>", "\\u003c|im_end|>"):
        called = Message("assistant", "", (ToolCall("c1", "weather", f'{{"city": "{city}"}}'),))
        talk = Conversation([SYSTEM, USER, called, CALLED[2]], [Tool("weather", "Tells it.", {"type": "object"})])
        counts.add(encode_prompt(loaded, talk, native=native).count(end))
    assert len(counts) == 1


def test_a_characters_of_no_text_are_taken_as_they_are():
    loaded = member(None)
    few = "\ufdd0<|im_end|>\ufdd1"
    assert few in render(loaded, [Message("user", few)])
    with pytest.raises(RequestError, match="U\\+FDD0"):
        render(loaded, [Message("user", "".join(map(chr, range(0xFDD0, 0xFDF0))))])
