"""``gac inspect``: the figures are those of plain counting, and warnings say what to do."""

from __future__ import annotations

import functools
import json
from pathlib import Path

import pytest
from conftest import EMBEDDED, SHARED
from typer.testing import CliRunner

from gac_core.cli import app
from gac_core.errors import ConfigError
from gac_core.inspection import common_words, inspect, load, words_of

TOKENIZERS = SHARED / "tokenizers"


@functools.cache
def real(name):
    """A real tokenizer, loaded once."""
    return load(str(TOKENIZERS / name))


def run(*arguments: str):
    return CliRunner().invoke(app, ["inspect", *map(str, arguments)])


def test_files_that_cannot_be_read_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bytes").write_bytes(b"\xff")
    for option, name, reason in (
        ("--words", "none", "No such file or directory"),
        ("--text", "bytes", "it is not UTF-8"),
    ):
        result = run(EMBEDDED[0], EMBEDDED[1], option, name)
        assert result.exit_code == 2
        assert f"cannot read '{name}' ({option}): {reason}; give a text file" in result.output
        assert "Errno" not in result.output


def test_the_report_of_the_embedded_members(tmp_path):
    words = tmp_path / "words.txt"
    words.write_text("bridge museum founder bridge crowns")
    result = run(*EMBEDDED, "--words", words, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    assert [member["name"] for member in report["members"]] == ["ash", "birch", "cedar"]
    assert report["words"] == 4
    assert set(report["agreement"]) == {"ash + birch", "ash + cedar", "birch + cedar"}
    for member in report["members"]:
        assert member["writes_all_bytes"]
        assert member["chat_template"]
        assert member["context"] == 1024
        assert member["ends"]
        assert 0 < member["shared"] < 1
        assert member["several_ids"] > 0
    held = [{d for d in load(folder).tokenizer.token_bytes if d is not None} for folder in EMBEDDED]
    assert report["shared_tokens"] == len(set.intersection(*held))
    assert report["union_size"] == len(set.union(*held)) + 1


def test_tables_and_default_words():
    result = run(*EMBEDDED[:2], "--count", "50")
    assert result.exit_code == 0, result.output
    assert "50 words tokenized alike" in result.output
    assert len(common_words()) == 5000


def test_bad_models_are_named():
    result = run("no/such-model")
    assert result.exit_code == 2
    assert "no/such-model" in result.output
    with pytest.raises(ConfigError, match="different names"):
        inspect([load(EMBEDDED[0]), load(EMBEDDED[0])], ["a"])


def test_words_of_a_text_come_by_frequency():
    assert words_of("b a b c b a", 2) == ["b", "a"]


@pytest.mark.shared
def test_warnings_about_real_tokenizers():
    names = ("llama-3", "qwen2.5", "t5-small")
    report = inspect([real(name) for name in names], ["the", "city", "of", "Washington"])
    llama, qwen, t5 = report.members
    assert (llama.kind, t5.kind) == ("byte-level", "sentencepiece")
    assert llama.writes_all_bytes
    assert not t5.writes_all_bytes
    assert llama.partial > 1000
    # Qwen composes letters and accents; T5 drops line breaks.
    assert "e\u0301" in qwen.changes
    assert "one\n\ntwo" in t5.changes
    assert report.agreement["llama-3 + qwen2.5"] == 1
    text = "\n".join(report.warnings)
    assert "t5-small cannot encode every text" in text
    assert "qwen2.5 does not preserve text" in text
    assert "t5-small has no chat template" in text


@pytest.mark.shared
def test_the_union_of_two_large_vocabularies():
    pair = inspect([real(name) for name in ("llama-3", "qwen2.5")], ["a"])
    assert pair.union_size == 170_086
    assert pair.shared_tokens >= 109_566


@pytest.mark.shared
@pytest.mark.parametrize("data", [b" ", b"\n", b"0", b"7", b".", b",", b"!", b"?", b"(", b'"', b"a"])
def test_common_characters_share_one_entry(data):
    """Punctuation, digits, a space and a line break of a SentencePiece and a byte-level member."""
    for name in ("llama-2", "llama-3"):
        member = real(name).tokenizer
        assert len(member.encode_bytes(data)) == 1
        assert member.decode(member.encode_bytes(data)) == data
