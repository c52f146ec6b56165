"""Tokenizers used by many threads at once give the results of one thread, and short texts do not wait for long ones."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from conftest import EMBEDDED
from transformers import AutoTokenizer

from gac_core.decoding.commit import make_commit
from gac_core.decoding.tokenized_text import TokenizedText
from gac_core.tokenization.tokenizer import MemberTokenizer

WORDS = ["In", "which", "town", "is", "the", "bridge?", "14:15,", "12", "crowns.", "Zürich", "漢字", "😀"]


class PythonTokenizer:
    """A tokenizer that is not fast and fails when two threads call the same object at once."""

    is_fast = False

    def __init__(self, hf: Any) -> None:
        self.hf = hf
        self.busy = threading.Lock()
        self.hold: tuple[threading.Event, threading.Event] | None = None

    def __deepcopy__(self, memo: object) -> PythonTokenizer:
        return PythonTokenizer(self.hf)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.hf, name)

    def __len__(self) -> int:
        return len(self.hf)

    def encode(self, text: str, **settings: Any) -> list[int]:
        assert self.busy.acquire(blocking=False), "two threads are inside one tokenizer"
        try:
            if self.hold is not None and len(text) > 1000:
                entered, go = self.hold
                entered.set()
                assert go.wait(30)
            return self.hf.encode(text, **settings)
        finally:
            self.busy.release()


def loaded(kind: str) -> MemberTokenizer:
    hf = AutoTokenizer.from_pretrained(EMBEDDED[0])
    return MemberTokenizer(hf if kind == "fast" else PythonTokenizer(hf), kind)


def committed(member: MemberTokenizer, pieces: list[str]) -> list[int]:
    sequence, commit = TokenizedText([]), make_commit("canonical", member)
    for piece in pieces:
        commit(sequence, piece.encode(), False)
    return sequence.token_ids


def jobs(place: int) -> list[tuple[str, Any]]:
    turned = WORDS[place % len(WORDS) :] + WORDS
    return [
        ("encode_whole", " ".join(turned) * (400 if place == 0 else 4)),
        ("encode_rendered", " ".join(turned)),
        ("encode_continuation", " " + turned[0]),
        ("encode_bytes", turned[1].encode()),
        ("commit", turned),
    ]


def result(member: MemberTokenizer, job: tuple[str, Any]) -> Any:
    name, value = job
    return committed(member, value) if name == "commit" else getattr(member, name)(value)


@pytest.mark.parametrize("kind", ["fast", "python"])
def test_threads_get_the_results_of_one_thread(kind):
    """All of them begin on a fresh tokenizer, whose tables and caches are still empty."""
    work = [job for place in range(12) for job in jobs(place)]
    expected = [result(loaded(kind), job) for job in work[:5]]
    alone = loaded(kind)
    expected = [*expected, *(result(alone, job) for job in work[5:])]
    member, start = loaded(kind), threading.Barrier(6)

    def run(offset: int) -> list[Any]:
        start.wait()
        turned = work[offset:] + work[:offset]
        found = [result(member, job) for job in turned]
        return found[len(work) - offset :] + found[: len(work) - offset]

    with ThreadPoolExecutor(6) as pool:
        assert all(found == expected for found in pool.map(run, range(0, 60, 10)))


def test_commits_do_not_wait_for_a_prompt_of_a_python_tokenizer():
    member = loaded("python")
    expected = committed(member, WORDS)
    entered, go = threading.Event(), threading.Event()
    member.hf.hold = (entered, go)
    prompt = threading.Thread(target=member.encode_whole, args=("word " * 1000,))
    prompt.start()
    try:
        assert entered.wait(30)
        assert committed(member, WORDS) == expected
    finally:
        go.set()
        prompt.join()


def test_encoding_leaves_the_state_of_a_fast_tokenizer_as_it_is():
    """Only a tokenizer that no call changes may be used without a lock; settings of its file are removed first."""
    hf = AutoTokenizer.from_pretrained(EMBEDDED[0])
    hf.backend_tokenizer.enable_truncation(4)
    hf.backend_tokenizer.enable_padding(length=64)
    member = MemberTokenizer(hf, "m")
    backend = hf.backend_tokenizer
    assert (backend.truncation, backend.padding) == (None, None)
    text = " ".join(WORDS)
    assert member.encode_whole(text) == loaded("fast").encode_whole(text)


def test_the_cache_of_byte_strings_is_bounded(monkeypatch):
    monkeypatch.setattr("gac_core.tokenization.tokenizer._MAX_CACHED", 3)
    member = loaded("fast")
    ids = [member.encode_bytes(word.encode()) for word in WORDS[:5]]
    assert member._cached_ids.cache_info().currsize == 3
    assert [member.encode_bytes(word.encode()) for word in WORDS[:5]] == ids
