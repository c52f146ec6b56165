"""Chat templates in the wild: each member's prompt is what its own template writes, and no word of it is lost."""

from __future__ import annotations

import json

import pytest
from conftest import EMBEDDED, QUESTION, SHARED
from prompts import encode_prompt, render
from transformers import AutoTokenizer

from gac_core.chat.conversation import Conversation, Message
from gac_core.chat.rendered_prompt import opens_thinking, uses_native_tools
from gac_core.chat.template import traits_of
from gac_core.chat.tools import Tool, ToolCall
from gac_core.errors import ChatTemplateError, RequestError
from gac_core.tokenization.tokenizer import MemberTokenizer

WITH_TEMPLATES = [
    *EMBEDDED,
    *(str(SHARED / "tokenizers" / n) for n in ("llama-3", "mistral-tekken", "phi-3", "qwen2.5")),
]
MARKED = [
    pytest.param(f, marks=pytest.mark.shared if "shared" in f else (), id=f.split("/")[-1]) for f in WITH_TEMPLATES
]
PLAIN = [
    QUESTION,
    QUESTION[1:],
    [*QUESTION, {"role": "assistant", "content": "Halkus."}, {"role": "user", "content": "Zürich  漢字 😀?\n"}],
]

# Small templates in the manner of well-known families.
GEMMA = (
    "{{ bos_token }}{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('Conversation roles must alternate') }}{% endif %}"
    "<start_of_turn>{{ 'model' if m.role == 'assistant' else m.role }}\n{{ m.content | trim }}<end_of_turn>\n"
    "{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}"
)
MISTRAL = (
    "{{ bos_token }}{% set rest = messages[1:] if messages[0].role == 'system' else messages %}"
    "{% for m in rest %}{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}"
    "{{ raise_exception('roles must alternate user/assistant') }}{% endif %}"
    "{% if m.role == 'user' %}[INST] {% if loop.last and messages[0].role == 'system' %}{{ messages[0].content }}\n\n"
    "{% endif %}{{ m.content }} [/INST]{% else %} {{ m.content }}{{ eos_token }}{% endif %}{% endfor %}"
)
IGNORING = (
    "{% for m in messages %}{% if m.role == 'user' %}U: {{ m.content }}\n{% elif m.role == 'assistant' %}"
    "A: {{ m.content }}\n{% endif %}{% endfor %}A: "
)
PARTS = (
    "{% for m in messages %}<|{{ m.role }}|>{% for p in m.content %}{% if p.type == 'text' %}{{ p.text }}{% endif %}"
    "{% endfor %}\n{% endfor %}<|assistant|>"
)
QWEN3 = (
    "{% if tools %}<|im_start|>system\n{% if messages[0].role == 'system' %}{{ messages[0].content }}\n\n{% endif %}"
    "# Tools\n{% for t in tools %}{{ t | tojson }}\n{% endfor %}Write <tool_call>\n{...}\n</tool_call>.<|im_end|>\n"
    "{% elif messages[0].role == 'system' %}<|im_start|>system\n{{ messages[0].content }}<|im_end|>\n{% endif %}"
    "{% set ns = namespace(last=0) %}"
    "{% for m in messages %}{% if m.role == 'user' %}{% set ns.last = loop.index0 %}{% endif %}{% endfor %}"
    "{% for m in messages %}{% if m.role == 'user' or (m.role == 'system' and not loop.first) %}"
    "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% elif m.role == 'assistant' %}<|im_start|>assistant\n"
    "{% if m.reasoning_content and loop.index0 > ns.last %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}"
    "{{ m.content }}{% for c in m.tool_calls or [] %}\n<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% elif m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response>"
    "<|im_end|>\n{% endif %}{% endfor %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}"
)
LLAMA3 = (
    "{{ bos_token }}{% for m in messages %}{% if 'tool_calls' in m %}{% if m.tool_calls | length != 1 %}"
    "{{ raise_exception('This model only supports single tool-calls at once!') }}{% endif %}"
    "<|start|>assistant<|end|>\n\n"
    '{"name": "{{ m.tool_calls[0].function.name }}", "parameters": {{ m.tool_calls[0].function.arguments | tojson }}}'
    "{% else %}<|start|>{{ m.role }}<|end|>\n\n{{ m.content | trim }}{% endif %}<|eot|>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}<|start|>assistant<|end|>\n\n"
)
OPENING = "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}{% endfor %}<|assistant|><think>\n"
BARE = "{% for m in messages %}{{ m.content }}{% endfor %}"

SYSTEM, USER, SAID, AGAIN = (
    Message("system", "Be brief."),
    Message("user", "Where?"),
    Message("assistant", "Here."),
    Message("user", "And when?"),
)
TOOL = Tool("weather", "Tells the weather.", {"type": "object", "properties": {"city": {"type": "string"}}})
CALL = ToolCall("c1", "weather", '{"city":  "Halkus"}')
CALLED = [
    USER,
    Message("assistant", "Let me see.", tool_calls=(CALL,), reasoning="I need the weather."),
    Message("tool", "rain", tool_call_id="c1", name="weather"),
]


def member(template, folder=EMBEDDED[0], name="m"):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if template is not None:
        tokenizer.chat_template = template
    return MemberTokenizer(tokenizer, name)


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


def form_of(loaded, tool_format="auto"):
    return "native" if uses_native_tools(loaded, Conversation([USER], [TOOL], tool_format=tool_format)) else "common"


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


# ---- words that spell control tokens


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
