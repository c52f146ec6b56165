"""No prompt or chat template stalls the engine: sizes are judged before work, and rendering is bounded."""

from __future__ import annotations

import random
import threading
import time
import unicodedata

import pytest
from conftest import EMBEDDED, REAL, REAL_NAMES, SHARED
from member_tokenizers import member_tokenizer
from prompts import encode_prompt
from tokenizers import AddedToken, normalizers, pre_tokenizers
from transformers import AutoTokenizer

from gac_core import Conversation, Message, PromptTooLongError, RequestError, SamplingParams
from gac_core.chat.rendered_prompt import render_prompt
from gac_core.chat.tools import Tool, ToolCall
from gac_core.tokenization.encoder import Encoder
from gac_core.tokenization.lengths import MAX_BYTES, min_tokens
from gac_core.tokenization.tokenizer import MemberTokenizer

NAMES = ["deepseek-llm", "gpt2", "llama-2", "llama-3", "mistral-tekken", "phi-3", "qwen2.5", "t5-small"]
ALL = [
    *EMBEDDED,
    *(pytest.param(str(SHARED / "tokenizers" / name), marks=pytest.mark.shared, id=name) for name in NAMES),
    *(pytest.param(str(REAL / name), marks=pytest.mark.real, id=name) for name in REAL_NAMES),
]


def texts(member, seed=0):
    """Prose, and texts of the longest tokens there are."""
    draw = random.Random(seed)
    pieces = sorted((data for data in member.token_bytes if data), key=len)[-40:]
    longest = [piece.decode(errors="replace") for piece in pieces]
    marks = ["e\u0301", "\u1112\u1161\u11ab", "\u2581", "  ", "\u3000", "\U000e0fff", "\u212b", "\ufb01", "\u200b"]
    yield "The bridge stands in Halkus. It was built in 1874.\n" * 20
    yield " " * 3000
    yield "\u2581" * 3000
    yield from (mark * 500 for mark in marks)
    for _ in range(30):
        yield "".join(draw.choice([*longest, *marks, *longest, "a", "\n"]) for _ in range(60))
    for word in longest[-10:]:
        yield word * 50
    for word in list(member.control_tokens.values())[:20]:
        yield f"{word}   \n  " * 50


@pytest.mark.parametrize("folder", ALL)
def test_no_text_has_fewer_tokens_than_its_bytes_tell(folder):
    member = member_tokenizer(folder)
    for text in texts(member):
        for form in (text, unicodedata.normalize("NFD", text)):
            least = min_tokens(member, form)
            assert least <= len(member.encode_rendered(form)), form
            for special in (False, True):
                try:
                    ids = encode_prompt(member, form, parse_special=special)
                except RequestError:
                    continue
                render_prompt(member, form, parse_special=special).check_length(len(ids))
    if not folder.endswith("t5-small"):
        assert min_tokens(member, "The bridge stands in Halkus. " * 1000) > 600


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "normalizer", normalizers.NFKC()),
        lambda t: setattr(t, "normalizer", normalizers.Replace("a", "")),
        lambda t: setattr(t, "normalizer", normalizers.Strip()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.WhitespaceSplit()),
        lambda t: setattr(t, "pre_tokenizer", pre_tokenizers.Split(" ", "removed")),
        lambda t: t.add_tokens([AddedToken("zz", lstrip=True, rstrip=True)]),
    ],
)
def test_tokenizers_that_drop_text_are_not_judged_by_it(change):
    """Each of them changes text in its own way; the bound stays below what comes out."""
    for folder in EMBEDDED:
        hf = AutoTokenizer.from_pretrained(folder)
        change(hf.backend_tokenizer)
        member = MemberTokenizer(hf, "changed")
        for text in ("a" * 4000, " " * 4000 + "zz" + " " * 4000, "\u3000" * 4000, " a" * 2000):
            assert min_tokens(member, text) <= len(member.encode_rendered(text)), (folder, text[:5])


def test_unknown_characters_count_nothing():
    """An id for unknown text may stand for any number of characters."""
    hf = AutoTokenizer.from_pretrained(EMBEDDED[1])
    hf.backend_tokenizer.model.byte_fallback = False
    hf.backend_tokenizer.model.fuse_unk = True
    member = MemberTokenizer(hf, "unknown")
    text = "\u6f22" * 4000
    assert len(member.encode_rendered(text)) < 10
    assert min_tokens(member, text) == 0


@pytest.fixture
def unencoded(ensemble, monkeypatch):
    """Encoding a large text fails."""
    encode = Encoder.encode

    def small(self, text, add_special_tokens=False):
        assert len(text) < 10_000
        return encode(self, text, add_special_tokens)

    monkeypatch.setattr(Encoder, "encode", small)
    return ensemble


def called(words):
    call = ToolCall("c1", "look", f'{{"x": "{words}"}}')
    return [USER, Message("assistant", tool_calls=(call,)), Message("tool", "none", tool_call_id="c1"), USER]


def described(words):
    schema = {"type": "object", "properties": {"x": {"type": "string", "description": words}}}
    return Conversation([USER], tools=[Tool("look", "short", schema)])


USER = Message("user", "Who?")
LONG = [
    str,
    lambda words: [Message("user", words)],
    lambda words: [Message("system", words), USER],
    lambda words: [USER, Message("assistant", words), USER],
    lambda words: Conversation([USER], tools=[Tool("look", words)]),
    called,
    described,
]


def test_a_prompt_that_cannot_fit_is_refused_without_encoding_it(unencoded):
    words = "The bridge stands in Halkus. " * 35_000
    for make in LONG:
        prompt = make(words)
        begun = time.perf_counter()
        with pytest.raises(
            PromptTooLongError, match=r"\d{7} bytes long, at least \d+ tokens, .*context holds 1024"
        ) as e:
            unencoded.generate(prompt, max_tokens=1)
        assert e.value.prompt_bytes >= len(words)
        assert time.perf_counter() - begun < 2


def test_texts_beyond_the_limit_are_refused_everywhere(unencoded):
    words = "word " * (MAX_BYTES // 5 + 1)
    for make in LONG:
        asks = [unencoded.count_tokens] if make is str else [unencoded.count_tokens, unencoded.generate]
        for ask in asks:
            with pytest.raises(RequestError, match=rf"more than {MAX_BYTES} bytes \(8 MiB\)|at most .* characters"):
                ask(make(words))
    with pytest.raises(RequestError, match=rf"the text has more than {MAX_BYTES} bytes .*split it"):
        unencoded.encode(words)
    with pytest.raises(RequestError, match="more than 8388608 bytes"):
        unencoded.encode("\u6f22" * (MAX_BYTES // 3 + 1))
    with pytest.raises(RequestError, match="more than 8388608 characters in all parts"):
        Message("user", ["word " * 1000] * 10_000)


def test_a_string_of_any_length_names_the_context_it_does_not_fit(unencoded):
    with pytest.raises(PromptTooLongError, match=r"40000000 bytes long, at least .*context holds 1024"):
        unencoded.generate("word " * 8_000_000)


def test_long_texts_are_still_counted(ensemble):
    text = "The bridge stands in Halkus. " * 1000
    expected = max(len(encode_prompt(member.tokenizer, text)) for member in ensemble._members)
    assert ensemble.count_tokens(text) == expected > 1024
    assert ensemble.count_tokens([Message("user", text)]) > expected
    with pytest.raises(PromptTooLongError):
        ensemble.generate(text)


def test_values_that_share_their_parts_are_not_expanded():
    schema: object = "x"
    for _ in range(60):
        schema = [schema, schema]
    with pytest.raises(RequestError, match="tool 'look' must contain at most"):
        Tool("look", "", {"type": "object", "enum": schema})


def test_a_long_prompt_does_not_delay_short_ones(ensemble, monkeypatch):
    """While one caller's long text is encoded, another caller's short one is, by the same member and by others."""
    inside, go = threading.Event(), threading.Event()
    hf = ensemble._members[0].tokenizer.hf
    encode = type(hf).encode

    def slow(self, text, *args, **kwargs):
        if len(text) > 300_000:
            inside.set()
            assert go.wait(30)
            return []
        return encode(self, text, *args, **kwargs)

    monkeypatch.setattr(type(hf), "encode", slow)
    thread = threading.Thread(target=lambda: ensemble.encode("word " * 100_000))
    thread.start()
    try:
        assert inside.wait(30)
        assert ensemble.generate("Who", max_tokens=1).stats.steps >= 1
    finally:
        go.set()
        thread.join()


def test_threads_that_encode_at_once_get_the_same_ids(ensemble):
    prompts = [f"Question {index}: in which town is <|x|> bridge {index}? " * 40 for index in range(12)]
    expected = [ensemble.encode(prompt) for prompt in prompts]
    found: dict[int, list] = {}

    def work(place):
        found[place] = [ensemble.encode(prompt) for prompt in prompts]
        found[place] += [ensemble.count_tokens([Message("user", "Who")], SamplingParams())]

    threads = [threading.Thread(target=work, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert all(found[place][:-1] == expected for place in range(4))
