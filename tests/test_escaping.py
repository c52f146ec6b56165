"""No word of a prompt becomes a control token, unless `parse_special` allows it."""

from __future__ import annotations

import json
import random
from unicodedata import normalize

import pytest
from conftest import EMBEDDED, SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from member_tokenizers import member_tokenizer
from prompts import encode_prompt, render
from tokenizers import AddedToken
from transformers import AutoTokenizer

from gac_core import Conversation, Message, RequestError, SamplingParams
from gac_core.chat.rendered_prompt import uses_native_tools
from gac_core.chat.tools import Tool, ToolCall
from gac_core.tokenization.escaping import Spellings, encode_text
from gac_core.tokenization.tokenizer import MemberTokenizer

NAMES = ["deepseek-llm", "gpt2", "llama-2", "llama-3", "mistral-tekken", "phi-3", "qwen2.5", "t5-small"]
REAL = [pytest.param(str(SHARED / "tokenizers" / name), marks=pytest.mark.shared, id=name) for name in NAMES]
ALL = [*EMBEDDED, *REAL]
# Byte-level tokenizers that change no text and add nothing to it.
EXACT = ("ash", "gpt2", "qwen2.5")
MARKED = [EMBEDDED[0], *(REAL[NAMES.index(name)] for name in ("llama-3", "qwen2.5", "phi-3"))]


def loaded_with(*tokens) -> MemberTokenizer:
    """An embedded member's tokenizer with further special tokens."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED[0])
    tokenizer.add_special_tokens({"additional_special_tokens": list(tokens)})
    return MemberTokenizer(tokenizer, "more")


def controls(member, ids):
    """The control ids among some ids; an id for unknown text is none."""
    unknown = set(member.encode_rendered("\U000e0fff"))
    return [index for index in ids if index in member.control_tokens and index not in unknown]


def added(member):
    return controls(member, member.without_end(member.encode_whole("a")))


@pytest.mark.parametrize("folder", ALL)
def test_no_spelling_becomes_a_control_token(folder):
    """Alone, in a row, inside words, and one inside another's end."""
    member = member_tokenizer(folder)
    words = list(member.control_tokens.values())
    assert words
    texts = [f"so {word} then" for word in words[:300]]
    texts += ["".join(words[:40]), f"x{words[0]}y{words[-1]}", *(word[:-1] + words[0] for word in words[:40])]
    texts += [word + words[0][1:] for word in words[:40]]
    for text in texts:
        assert controls(member, encode_text(member, text)) == added(member), text


@pytest.mark.parametrize("folder", ALL)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_no_text_at_all_becomes_a_control_token(folder, data):
    member = member_tokenizer(folder)
    words = list(member.control_tokens.values())[:50]
    bits = st.one_of(
        st.sampled_from(words),
        st.sampled_from(words).map(lambda word: word[: len(word) // 2]),
        st.sampled_from(words).map(lambda word: word[len(word) // 2 :]),
        st.text(max_size=4),
        st.sampled_from(["<", "|", ">", "[", "]", " ", "\n"]),
    )
    text = "".join(data.draw(st.lists(bits, min_size=1, max_size=8))).encode("utf-8", "replace").decode()
    ids = encode_text(member, text)
    assert controls(member, ids) == added(member)
    if folder.endswith(EXACT):
        # Qwen's tokenizer composes characters.
        assert normalize("NFC", member.decode(ids).decode()) == normalize("NFC", text)


@pytest.mark.parametrize("folder", ALL)
@pytest.mark.parametrize("text", ["The capital of France is", " two  spaces\n\n", "<p>a | b</p>", "Zürich 漢字 😀"])
def test_a_text_without_spellings_is_the_tokenizers_own(folder, text):
    member = member_tokenizer(folder)
    assert encode_text(member, text) == member.without_end(member.hf.encode(text))


@pytest.mark.parametrize("folder", ALL)
def test_special_words_may_be_parsed(folder):
    member = member_tokenizer(folder)
    word = next(iter(member.control_tokens.values()))
    ids = encode_prompt(member, f"so {word} then", parse_special=True)
    assert ids == member.without_end(member.hf.encode(f"so {word} then"))
    assert len(controls(member, ids)) > len(added(member))


def test_overlapping_spellings_are_both_divided():
    member = loaded_with(">>TITLE<<", "<|endoftext|>")
    for text in (">>TITLE<<|endoftext|>", "<|endoftext|>>TITLE<<|endoftext|>", ">>TITLE<<<|endoftext|>"):
        ids = encode_text(member, text)
        assert controls(member, ids) == []
        assert member.decode(ids) == text.encode()
        ids = encode_prompt(member, [Message("user", text)])
        assert controls(member, ids) == controls(member, encode_prompt(member, [Message("user", "words")]))


def test_the_check_on_ids_sees_what_normalisers_make():
    """A spelled token that only the normaliser's text contains is divided in a string, and refused in a message."""
    from tokenizers import normalizers

    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED[0])
    tokenizer.backend_tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC()])
    tokenizer.add_tokens([AddedToken("<|x|>", special=True, normalized=True)], special_tokens=True)
    member = MemberTokenizer(tokenizer, "wide")
    wide = "so \uff1c|x|\uff1e then"
    assert controls(member, member.hf.encode(wide))
    ids = encode_text(member, wide)
    assert controls(member, ids) == []
    assert member.decode(ids) == b"so <|x|> then"
    with pytest.raises(RequestError, match=r"'wide'.*<\|x\|>.*parse_special"):
        encode_prompt(member, [Message("user", wide)])
    assert controls(member, encode_prompt(member, [Message("user", wide)], parse_special=True))


@pytest.mark.parametrize("folder", MARKED)
def test_messages_may_be_parsed_too(folder):
    member = member_tokenizer(folder)
    word = next(word for index, word in member.control_tokens.items() if index in member.end_ids)
    talk = [Message("user", f"so {word} then")]
    plain = encode_prompt(member, [Message("user", "so then")])
    assert len(controls(member, encode_prompt(member, talk))) == len(controls(member, plain))
    assert len(controls(member, encode_prompt(member, talk, parse_special=True))) == len(controls(member, plain)) + 1
    assert word in render(member, talk)


def test_spellings_are_found_where_they_overlap():
    words = Spellings(["aba", "ba", "c", " ", "<<<"])
    assert words.words == {"aba", "ba", "<<<"}
    assert words.starts("ababa c <<<<") == [0, 1, 2, 3, 8, 9]
    assert words.count("ababa <<<<") == 3
    assert Spellings([]).starts("any text") == []


def test_parse_special_reaches_a_request(ensemble):
    members = [member.tokenizer for member in ensemble._members]
    word = next(w for m in members for i, w in m.control_tokens.items() if i in m.end_ids)
    text = f"In which {word} town"
    for allowed in (False, True):
        params = SamplingParams(max_tokens=1, parse_special=allowed)
        request, _ = ensemble._input_processor.request(text, params, {})
        held = [len(controls(member, request.voices[index].text.token_ids)) for index, member in enumerate(members)]
        expected = [encode_prompt(member, text, parse_special=allowed) for member in members]
        assert held == [len(controls(member, ids)) for member, ids in zip(members, expected, strict=True)]
        assert (sum(held) > sum(len(added(member)) for member in members)) is allowed
        assert ensemble.count_tokens(text, SamplingParams(parse_special=allowed)) == max(map(len, expected))
    with pytest.raises(RequestError, match="parse_special must be True or False"):
        SamplingParams(parse_special=None)


FALCON = [">>TITLE<<", ">>ABSTRACT<<", ">>INTRODUCTION<<", ">>QUESTION<<", "<|endoftext|>", "<<", ">>", "<|", "|>"]
FALCON_TEMPLATE = (
    "{% for m in messages %}<|{{ m.name or m.role }}|>{{ m.content }}|>{% for c in m.tool_calls or [] %}<tool_call>"
    "{{ c.function | tojson }}</tool_call>{% endfor %}{% endfor %}"
    "{% for t in tools or [] %}{{ t | tojson }}{% endfor %}<|"
)


def fragments(words, draw):
    """Spellings, their beginnings and ends, and what may stand between them."""
    word = draw.choice(words)
    cut = draw.randrange(1, len(word))
    return draw.choice(
        [word, word[:cut], word[cut:], word + word[1:], draw.choice(" \na<|>\u2581\u00e9\u200b\x00\u6f22")]
    )


def talk_of(make, kind):
    """A conversation of one of three kinds, every text of which comes from `make`."""
    schema = {
        "type": "object",
        "properties": {"p" + make(): {"type": "string", "description": make(), "enum": [make()]}},
    }
    tool = Tool("look", make(), schema)
    arguments = json.dumps({"x": make(), "y" + make(): [make(), {"z" + make(): make()}]}, ensure_ascii=kind == 1)
    call = Message("assistant", make(), tool_calls=(ToolCall("c1", "look", arguments),))
    user = Message("user", make(), name=make())
    result = Message("tool", make(), tool_call_id="c1", name=make())
    system = Message("system", make())
    return [
        Conversation([system, user, Message("assistant", make(), reasoning=make()), Message("user", make())]),
        Conversation([user, call, result, Message("user", make())], tools=[tool]),
        Conversation([system, user], tools=[tool]),
    ][kind]


@pytest.mark.parametrize("folder", [*MARKED, "falcon", "falcon and its template"])
def test_no_text_of_a_conversation_becomes_a_control_token(folder):
    member = loaded_with(*FALCON) if "falcon" in folder else member_tokenizer(folder)
    if folder.endswith("template"):
        member.hf.chat_template = FALCON_TEMPLATE
    words = [word for word in member.control_tokens.values() if len(word) > 1 and word.strip()]
    draw = random.Random(folder)
    for kind in range(3):
        plain = talk_of(lambda: f"words {draw.random()}", kind)
        expected = controls(member, encode_prompt(member, plain, uses_native_tools(member, plain)))
        for _ in range(60):
            talk = talk_of(lambda: "".join(fragments(words, draw) for _ in range(draw.randrange(1, 6))), kind)
            found = controls(member, encode_prompt(member, talk, uses_native_tools(member, talk)))
            assert found == expected, talk


def test_words_that_look_like_parts_of_spellings_stay_the_templates_own():
    """An edge that might become a spelling changes nothing where the template writes nothing that completes it."""
    member = loaded_with("<|object_ref|>")
    talk = [
        {"role": "user", "content": "> quoted"},
        {"role": "assistant", "content": "object"},
        {"role": "user", "content": "<"},
    ]
    expected = member.hf.apply_chat_template(talk, add_generation_prompt=True, return_dict=False)
    assert encode_prompt(member, talk) == expected
