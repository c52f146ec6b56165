"""The cache on disk: same tables, whatever happens to the files."""

from __future__ import annotations

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import numpy as np
import pytest
from conftest import EMBEDDED
from tables import build
from transformers import AutoTokenizer

from gac_core.tokenization import table_cache
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.setenv("GAC_CACHE_DIR", str(tmp_path))
    return tmp_path


def test_cached_tables_equal_built_ones(place, monkeypatch):
    cold = build(EMBEDDED)
    entries = sorted(place.iterdir())
    assert len(entries) == len(EMBEDDED) + 1
    assert build(EMBEDDED) == cold
    assert sorted(place.iterdir()) == entries
    monkeypatch.setenv("GAC_CACHE_DIR", "")
    assert build(EMBEDDED) == cold


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "other"])
def test_damaged_entries_are_built_anew(place, damage, caplog):
    cold = build(EMBEDDED)
    for path in place.iterdir():
        data = path.read_bytes()
        if damage == "other":
            np.savez(path, bytes=np.zeros(3, np.uint8))
            continue
        middle = len(data) // 2
        path.write_bytes({"empty": b"", "cut": data[:middle]}.get(damage, data[:middle] + b"?!?!" + data[middle + 4 :]))
    assert build(EMBEDDED) == cold
    assert "is built again" in caplog.text
    caplog.clear()
    assert build(EMBEDDED) == cold
    assert "is built again" not in caplog.text


def test_builds_at_once_do_no_harm(place):
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        built = list(pool.map(build, [EMBEDDED] * 2))
    assert built[0] == built[1] == build(EMBEDDED)
    assert not list(place.glob("*.part"))


def test_a_cache_that_cannot_be_written_is_done_without(tmp_path, monkeypatch, caplog):
    file = tmp_path / "file"
    file.write_text("not a folder")
    monkeypatch.setenv("GAC_CACHE_DIR", str(file))
    assert build(EMBEDDED[:1])[0][0]
    assert "cannot write" in caplog.text


def test_another_end_of_text_is_another_entry(place):
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED[0])
    plain, ended = MemberTokenizer(tokenizer, "a"), MemberTokenizer(tokenizer, "a", end_ids=[40])
    assert plain.fingerprint == ended.fingerprint
    assert len(UnionVocabulary([plain])) == len(UnionVocabulary([ended])) + 1


def test_packing_keeps_every_string():
    strings = [b"", b"ab", None, b"\x00\xff", b"", None]
    assert table_cache.unpack(table_cache.pack(strings)) == strings
