"""A member's own tokens come back as the same bytes, for real tokenizers of every kind."""

from __future__ import annotations

import itertools

import pytest
from conftest import EMBEDDED, ROOT, SHARED
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from gac_core.decoding.commit import make_commit
from gac_core.decoding.tokenized_text import TokenizedText
from gac_core.errors import UnwritableTextError
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary

REAL = ["deepseek-llm", "gpt2", "llama-2", "llama-3", "mistral-tekken", "phi-3", "qwen2.5", "t5-small"]
TEXT = "Zürich ä é ñ 漢字 한국 😀 naïve – “quoted” ½ tokens,\n\tof code: x_1 += 2;  two spaces"
_LOADED: dict[str, MemberTokenizer] = {}


def load(folder) -> MemberTokenizer:
    name = str(folder)
    if name not in _LOADED:
        _LOADED[name] = MemberTokenizer(AutoTokenizer.from_pretrained(name), name)
    return _LOADED[name]


@pytest.mark.shared
@pytest.mark.parametrize("name", REAL)
def test_every_token_survives_the_union(name):
    """0 changed: the bytes of each id, written anew, are the same bytes, and the union holds them once."""
    member = load(SHARED / "tokenizers" / name)
    union = UnionVocabulary([member])
    held = [(i, data) for i, data in enumerate(member.token_bytes) if data is not None]
    assert len(held) > 30_000
    changed = [i for i, data in held if member.decode(member.encode_bytes(union.tokens[union.ids[data]])) != data]
    assert changed == []
    # Written again as one id, not as several.
    assert all(len(member.encode_bytes(data)) == 1 for _, data in held)


@pytest.mark.shared
@pytest.mark.parametrize("name", [n for n in REAL if n != "t5-small"])
def test_encoded_text_decodes_to_its_bytes(name):
    member = load(SHARED / "tokenizers" / name)
    ids = member.hf.encode(TEXT, add_special_tokens=False)
    if name == "deepseek-llm":
        # Its encoder gives added letters for "ü" and others, which it decodes as single bytes.
        assert member.decode(ids).decode(errors="replace") == member.hf.decode(ids)
        ids = list(member.encode_continuation(TEXT) or ())
    data = member.decode(ids)
    # SentencePiece tokenizers put one space before the text.
    assert data.removeprefix(b" ") == TEXT.encode()
    assert member.decode(member.encode_bytes(TEXT.encode())) == TEXT.encode()


@pytest.mark.shared
def test_a_tokenizer_without_bytes_says_what_it_cannot_write():
    member = load(SHARED / "tokenizers" / "t5-small")
    with pytest.raises(UnwritableTextError, match="cannot encode") as caught:
        member.encode_bytes("漢".encode())
    assert caught.value.value == "漢".encode()


@pytest.mark.shared
def test_the_spelling_is_judged_by_behaviour():
    levels = {name: load(SHARED / "tokenizers" / name).byte_level for name in REAL}
    assert levels == {
        "deepseek-llm": True,
        "gpt2": True,
        "llama-2": False,
        "llama-3": True,
        "mistral-tekken": True,
        "phi-3": False,
        "qwen2.5": True,
        "t5-small": False,
    }


@pytest.mark.parametrize(
    "folder",
    [*EMBEDDED, *(pytest.param(SHARED / "tokenizers" / name, marks=pytest.mark.shared, id=name) for name in REAL)],
)
def test_every_id_is_decoded_as_the_tokenizer_does(folder):
    member = load(folder)
    (anchor,) = member.hf.encode("a", add_special_tokens=False)[-1:]
    before = member.hf.decode([anchor], clean_up_tokenization_spaces=False)
    ids = [i for i, data in enumerate(member.token_bytes) if data is not None]
    pairs = [[anchor, i] for i in ids]
    texts = [member.hf.decode(each, clean_up_tokenization_spaces=False) for each in pairs]
    expected = [before + (member.token_bytes[i] or b"").decode(errors="replace") for i in ids]
    assert [(i, a, b) for i, a, b in zip(ids, texts, expected, strict=True) if a != b] == []


def test_an_added_letter_writes_what_its_tokenizer_decodes():
    """Its encoder reads the letter, its decoder a byte: prompts keep its ids, commits write what it decodes."""
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED[0])
    tokenizer.add_tokens(["ü"])
    member = MemberTokenizer(tokenizer, "letters", rows=len(tokenizer))
    index = tokenizer.convert_tokens_to_ids("ü")
    assert member.token_bytes[index] == b"\xfc"
    assert index in member.encode_prompt("für")
    for rule in ("canonical", "context-free"):
        sequence = TokenizedText([])
        commit = make_commit(rule, member)
        for data in ("fü", "r", " Zürich"):
            commit(sequence, data.encode(), False)
        assert index not in sequence.token_ids
        assert member.decode(sequence.token_ids) == "für Zürich".encode()


@pytest.mark.shared
def test_deepseek_writes_every_byte():
    """Its 13 added letters are the bytes that its other tokens lack."""
    member = load(SHARED / "tokenizers" / "deepseek-llm")
    assert member.unwritable_bytes == b""
    assert member.token_bytes[member.hf.convert_tokens_to_ids("ü")] == b"\xfc"
    assert member.decode(member.encode_continuation("Zürich") or ()) == "Zürich".encode()


@pytest.mark.shared
def test_turns_end_where_the_template_says():
    for name, end in (("llama-3", "<|eot_id|>"), ("qwen2.5", "<|im_end|>"), ("phi-3", "<|end|>")):
        member = load(SHARED / "tokenizers" / name)
        assert member.hf.convert_tokens_to_ids(end) in member.end_ids


@pytest.mark.shared
def test_all_ends_of_a_generation_config_count(stories):
    assert {1, 2} <= stories._members[0].tokenizer.end_ids


@pytest.mark.shared
def test_a_byte_token_and_its_character_share_an_entry():
    llama = load(SHARED / "tokenizers" / "llama-2")
    gpt2 = load(SHARED / "tokenizers" / "gpt2")
    union = UnionVocabulary([llama, gpt2])
    for data in (b"!", b"\n", b" ", b"7"):
        assert union.ids[data] >= 0
        assert gpt2.encode_bytes(data)
        assert llama.encode_bytes(data)
    # The ordinary piece is written, not the byte token.
    assert llama.encode_bytes(b"!") == (llama.hf.convert_tokens_to_ids("!"),)
    assert union.tokens == sorted(set(union.tokens))


@pytest.mark.parametrize("folder", EMBEDDED)
@settings(max_examples=150, deadline=None)
@given(
    data=st.one_of(st.text(min_size=1).map(lambda t: t.encode("utf-8", "replace")), st.binary(min_size=1, max_size=8))
)
def test_embedded_members_write_any_bytes(folder, data):
    member = load(folder)
    assert member.decode(member.encode_bytes(data)) == data


@pytest.mark.parametrize("folder", EMBEDDED)
def test_plain_loading_keeps_the_text(folder):
    member = load(folder)
    text = "In which town\nis the bridge? 14:15, 12 crowns."
    assert member.decode(member.hf.encode(text, add_special_tokens=False)).lstrip() == text.encode()


def pieces_of(member: MemberTokenizer, text: str) -> list[bytes]:
    ids = member.hf.encode(text, add_special_tokens=False)
    # Added letters that the tokenizer decodes as bytes are written by the ids that decode to them.
    ids = [own for i in ids for own in member._replacements.get(i, (i,))]
    return [data for data in (member.token_bytes[i] for i in ids) if data]


@pytest.mark.shared
@pytest.mark.parametrize("name", [n for n in REAL if n != "t5-small"])
def test_canonical_commits_give_the_members_own_tokens(name):
    """Whatever pieces others write, a member holds the ids that its own tokenizer gives the whole text."""
    member = load(SHARED / "tokenizers" / name)
    lines = (line.strip() for line in (ROOT / "README.md").read_text().splitlines())
    # Without anything that spells a control token, which tokenizers do not cut as text.
    text = " ".join([TEXT, *(line for line in lines if line and not set("<[") & set(line))])
    for other in REAL:
        if other in (name, "t5-small"):
            continue
        pieces = pieces_of(load(SHARED / "tokenizers" / other), text)
        held = {}
        for rule in ("canonical", "context-free"):
            commit, sequence = make_commit(rule, member), TokenizedText([])
            for data in pieces:
                commit(sequence, data, False)
            assert member.decode(sequence.token_ids) == b"".join(pieces), (other, rule)
            held[rule] = sequence.token_ids
        whole = member.encode_continuation(b"".join(pieces).decode())
        assert tuple(held["canonical"]) == whole, other
        assert len(held["context-free"]) >= len(whole)


@pytest.mark.shared
@settings(max_examples=40, deadline=None)
@given(
    text=st.text(min_size=1, max_size=40),
    cuts=st.lists(st.integers(1, 8), min_size=1, max_size=20),
    names=st.permutations(REAL),
)
def test_text_in_is_text_out_through_every_pair(text, cuts, names):
    """Any Unicode text, in one member's pieces or in raw bytes, is the same text in another, or a named error."""
    writer, reader = (load(SHARED / "tokenizers" / name) for name in names[:2])
    data = text.encode("utf-8", "replace")
    ends = list(itertools.takewhile(lambda end: end < len(data), itertools.accumulate(itertools.cycle(cuts))))
    raw = [data[start:end] for start, end in itertools.pairwise([0, *ends, len(data)])]
    if can_write(writer, data):
        pieces = [piece for i in writer.encode_bytes(data) if (piece := writer.token_bytes[i])]
        assert b"".join(pieces) == data
    else:
        pieces = []
    for parts in (pieces, raw):
        if not all(can_write(reader, part) for part in parts):
            continue
        for rule in ("canonical", "context-free"):
            sequence = TokenizedText([])
            commit = make_commit(rule, reader)
            for part in parts:
                commit(sequence, part, False)
            assert reader.decode(sequence.token_ids) == b"".join(parts)


def can_write(member: MemberTokenizer, data: bytes) -> bool:
    """Whether a member has ids for some bytes; only the one without byte tokens may lack them."""
    if not member.name.endswith("t5-small"):
        return True
    try:
        return bool(member.encode_bytes(data))
    except UnwritableTextError:
        return False


@pytest.mark.shared
def test_all_ends_of_text_are_one_entry():
    """A SentencePiece and a byte-level member end together, whatever their end tokens are called."""
    members = [load(SHARED / "tokenizers" / name) for name in ("llama-2", "llama-3", "qwen2.5")]
    union = UnionVocabulary(members)
    for member in members:
        columns = union.table(member).columns
        assert {int(columns[i]) for i in member.end_ids} == {union.end_id}
        assert union.data(union.end_id) is None
