"""The experiments' pure functions: cuts of hand-made tokenizers, word lists, the first wrong token of an answer."""

from __future__ import annotations

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.experiments import vocabulary, words
from gac_core.inspection import pieces_of, share_cut_alike
from gac_core.tokenization.tokenizer import MemberTokenizer


def made(name, *merges):
    """A byte-level BPE of all bytes and these merges, such as ``"ab c"``."""
    pairs = [tuple(merge.split()) for merge in merges]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return MemberTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer), name)


def test_words_are_cut_alike_where_all_tokens_are_the_same():
    texts = [" ab", " abc", " x"]
    first = pieces_of(made("first", "a b", "ab c"), texts)
    second = pieces_of(made("second", "a b"), texts)
    assert first == [(b" ", b"ab"), (b" ", b"abc"), (b" ", b"x")]
    assert second == [(b" ", b"ab"), (b" ", b"ab", b"c"), (b" ", b"x")]
    assert share_cut_alike(first, second) == pytest.approx(2 / 3)
    assert share_cut_alike(first, first) == 1


def test_a_text_that_is_not_preserved_is_never_cut_alike():
    assert share_cut_alike([None, (b"a",)], [None, (b"a",)]) == 0.5
    assert share_cut_alike([], []) == 0


def test_every_pair_is_compared_in_every_category():
    pieces = {
        "a": {"x": [(b"1",), (b"2",)], "y": [(b"3",)]},
        "b": {"x": [(b"1",), (b"2", b"")], "y": [(b"3",)]},
        "c": {"x": [(b"0",), (b"2",)], "y": [None]},
    }
    pairs = vocabulary.compare(pieces)
    assert {pair.name: dict(pair.shares) for pair in pairs} == {
        "a + b": {"x": 0.5, "y": 1.0},
        "a + c": {"x": 0.5, "y": 0.0},
        "b + c": {"x": 0.0, "y": 0.0},
    }
    assert vocabulary.by_closeness(pairs, "x") == ["a", "b", "c"]
    assert "| x | 2 | 50.0 | 0 to 50 | 50.0 |" in vocabulary.table(pairs, ["a + c"], {"x": 2, "y": 1})


def test_plots_are_small_and_the_same_each_time(tmp_path):
    pairs = [vocabulary.Pair("a", "b", {"x": 0.5, "y": 1.0}), vocabulary.Pair("a", "c", {"x": 0.0, "y": 0.25})]
    pairs.append(vocabulary.Pair("b", "c", {"x": 0.0, "y": 0.25}))
    for name in ("one", "two"):
        vocabulary.heat_map(pairs, "x", tmp_path / name / "heat.svg")
        vocabulary.range_plot(pairs, ["a + b"], tmp_path / name / "range.svg")
    for plot in ("heat.svg", "range.svg"):
        text = (tmp_path / "one" / plot).read_text()
        assert text == (tmp_path / "two" / plot).read_text()
        assert len(text) < 80_000
    assert "a + b" in text


def test_word_lists():
    texts = ["Alkanes burn; the enthalpy of HCl is low.", "the isotope"]
    assert words.domain_words(texts, ["the", "of", "is", "low"]) == ["burn", "enthalpy", "isotope"]
    code = words.code_texts(["def area(w, h):\n    return w * h\n"])
    assert code["identifiers"] == [" area", " h", " w"]
    assert code["operators"] == [" (", " )", " *", " ,", " :"]
    assert code["indented line starts"] == ["\n    return"]
    assert len(set(words.rare_words(100)) - set(words.common_words(50_000))) == 100
