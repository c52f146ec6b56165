"""Documents kept apart from the slots: what is restored equals what is computed, within a bound, pinned on request."""

from __future__ import annotations

import random

import pytest
import torch
from architectures import ARCHITECTURES
from chunks import member_of
from vision_members import asked, ensemble_of, picture, vision_members  # noqa: F401

import gac_core.model.compiled
from gac_core import RequestError
from gac_core.model.chunk import Chunk, KeptPrefix
from gac_core.model.entries import DocumentCache, PrefixEntries, common_prefix_length


class ListStore:
    """Slots as lists, of which one id takes a byte."""

    def __init__(self, *slots):
        self.slots = [list(slot) for slot in slots]

    def save(self, slot, length):
        return (torch.tensor(self.slots[slot][:length]),)

    def saved_bytes(self, length):
        return length

    def restore(self, states, slot, length):
        self.slots[slot] = states[0][:length].tolist()


def entries(max_bytes=100, **kept):
    """Entries of texts, kept in their order with the pin of each."""
    texts = [(20, 1), (20, 2), (20, 3), (30, 4), (90, 5)]
    store = ListStore(*([fill] * length for length, fill in texts))
    made = PrefixEntries("ash", store, max_bytes)
    for slot, pinned in kept.items():
        number = int(slot[1:])
        made.keep(store.slots[number], number, pinned)
    return made, store


def test_the_longest_common_prefix_is_found_among_thousands():
    draw = random.Random(1)
    texts = list({tuple(draw.choices((7, 8, 9), k=draw.randint(1, 12))) for _ in range(1000)})
    store = ListStore(*texts)
    kept = PrefixEntries("ash", store, 10**6)
    for slot, text in enumerate(texts):
        kept.keep(text, slot)
    for _ in range(100):
        asked = draw.choices((7, 8, 9), k=draw.randint(1, 14))
        found = kept.longest(asked)
        assert found is not None
        entry, length = found
        assert length == common_prefix_length(entry.cache_keys, asked)
        assert length == max(common_prefix_length(text, asked) for text in texts)
    assert kept.longest([6, 7]) is None


def test_an_entry_holds_what_the_slot_held_when_it_was_kept():
    kept, store = entries(s0=None)
    store.slots[0] = [9] * 40
    found = kept.longest([1] * 12 + [5] * 9)
    assert found is not None
    kept.use(found[0], 1, found[1])
    assert store.slots[1] == [1] * 12


def test_the_least_recently_used_one_makes_room():
    kept, store = entries(80, s0=None, s1=None, s2=None)
    kept.use(kept.longest([1] * 20)[0], 0, 20)
    kept.keep(store.slots[3], 3)
    assert [kept.get([fill] * length) is not None for length, fill in ((20, 1), (20, 2), (20, 3), (30, 4))] == [
        True,
        False,
        True,
        True,
    ]
    assert kept.contents == DocumentCache(3, 70, 0)


def test_pinned_ones_stay_and_more_of_them_than_fit_are_refused():
    kept, store = entries(60, s0=True, s1=True)
    kept.keep(store.slots[3], 3)
    assert kept.contents == DocumentCache(2, 40, 40)
    kept.keep(store.slots[2], 2)
    with pytest.raises(RequestError, match="member 'ash' would take 70 bytes, and document_cache_gib allows 60; raise"):
        kept.keep(store.slots[3], 3, pinned=True)
    assert kept.contents == DocumentCache(3, 60, 40)
    kept.keep([1] * 20, 0, pinned=False)
    kept.keep(store.slots[3], 3, pinned=True)
    assert kept.contents == DocumentCache(2, 50, 50)
    assert kept.get([1] * 20) is None


def test_a_pin_is_kept_until_it_is_taken_back():
    kept, store = entries(60, s0=True)
    kept.keep(store.slots[0], 0)
    assert kept.contents.pinned_bytes == 20
    kept.keep(store.slots[0], 0, pinned=False)
    assert kept.contents == DocumentCache(1, 20, 0)
    kept.keep(store.slots[4], 4)
    assert kept.contents == DocumentCache(1, 20, 0), "what is larger than the bound evicts nothing"


class NoMemory(ListStore):
    def save(self, slot, length):
        raise MemoryError


def test_without_memory_a_document_is_not_kept_and_a_pinned_one_is_an_error():
    kept = PrefixEntries("ash", NoMemory([1] * 20), 100)
    assert kept.keep([1] * 20, 0) is None
    with pytest.raises(MemoryError):
        kept.keep([1] * 20, 0, pinned=True)
    assert kept.contents == DocumentCache()


class Faulty(ListStore):
    def save(self, slot, length):
        return (torch.ones(length), torch.full((length,), torch.nan))


def test_states_that_are_not_finite_are_not_kept():
    kept = PrefixEntries("ash", Faulty([1] * 20), 100)
    assert kept.keep([1] * 20, 0) is None
    with pytest.raises(ValueError, match="not finite"):
        kept.keep([1] * 20, 0, pinned=True)
    assert kept.contents == DocumentCache()


def read(member, request_id, ids, keep=None, release=True):
    """All logits that a member gives for a text whose first ids are kept; and how many ids were computed."""
    computed = 0
    while True:
        (result,) = member.forward([Chunk(request_id, 0, tuple(ids), 4, keep=keep)])
        computed += result.computed
        if result.logits is not None:
            assert isinstance(result.logits, torch.Tensor), result.logits
            break
    if release:
        member.release(request_id, clear=True)
    return result.logits, computed


def text(seed, length, size):
    return torch.randint(3, size, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_a_restored_document_gives_the_logits_of_the_plain_forward(name, tokenizer):
    """Documents in random order, with questions of several lengths; slots are cleared, so that entries alone count."""
    member = member_of(name, tokenizer, prefill_tokens=32)
    size = len(tokenizer)
    head = text(0, 17, size)
    documents = [head + text(seed, length, size) for seed, length in ((1, 40), (2, 23), (3, 64))]
    for index, document in enumerate(documents):
        read(member, f"warm {index}", [*document, 5, 6, 7, 8], KeptPrefix(len(document)))
    draw = random.Random(name)
    for step in range(8):
        document = draw.choice(documents)
        ids = document + text(100 + step, draw.randint(5, 30), size)
        logits, computed = read(member, str(step), ids, KeptPrefix(len(document)))
        assert computed == len(ids) - len(document)
        plain = member._runner._model(torch.tensor([ids])).logits[0, -4:]
        torch.testing.assert_close(logits, plain, rtol=1e-4, atol=1e-4)
    _, computed = read(member, "another", head + text(9, 30, size))
    assert computed == 30
    assert member.document_cache == DocumentCache(3, member._runner.saved_bytes(sum(map(len, documents))), 0)


def test_several_documents_are_restored_into_one_forward(tokenizer):
    """Voices that share a head of the prompt do not wait for one another: it is in every entry."""
    member = member_of("llama", tokenizer)
    size = len(tokenizer)
    head = text(0, 20, size)
    documents = [head + text(seed, 20 + seed, size) for seed in range(1, 6)]
    for index, document in enumerate(documents):
        read(member, f"warm {index}", [*document, 5, 6, 7, 8], KeptPrefix(len(document)))
    cold = head + text(50, 20, size)
    texts = [cold, *([*document, 9, 10, 11, 12] for document in documents)]
    results = member.forward([Chunk(str(index), 0, tuple(ids), 4) for index, ids in enumerate(texts)])
    assert [result.computed for result in results] == [20, 4, 4, 4, 4, 4]
    for ids, result in zip(texts, results, strict=True):
        plain = member._runner._model(torch.tensor([ids])).logits[0, -4:]
        torch.testing.assert_close(result.logits, plain, rtol=1e-4, atol=1e-4)


def test_a_slot_that_holds_as_much_is_taken_instead(tokenizer):
    member = member_of("llama", tokenizer)
    document = text(1, 30, len(tokenizer))
    read(member, "a", [*document, 5, 6, 7, 8], KeptPrefix(30), release=False)
    member.release("a")
    before = member._slots.num_cached
    read(member, "b", [*document, 9, 10, 11, 12], release=False)
    assert member._slots.num_running + member._slots.num_cached == before
    member.release("b")


def test_a_pin_that_does_not_fit_is_an_error_of_its_chunk(tokenizer):
    member = member_of("llama", tokenizer, document_cache_bytes=40 * 768)
    ids = text(1, 60, len(tokenizer))
    fits, large = (Chunk(str(length), 0, tuple(ids), 1, keep=KeptPrefix(length, True)) for length in (30, 50))
    good, bad = member.forward([fits, Chunk("x", 0, tuple(ids[::-1]), keep=large.keep)])
    assert good.kept_bytes == 30 * 768
    assert isinstance(bad.logits, RequestError)
    assert "member 'm' would take 61440 bytes" in str(bad.logits)


def test_nothing_is_kept_when_deterministic_or_row_by_row(tokenizer):
    ids = text(1, 60, len(tokenizer))
    member = member_of("llama", tokenizer, deterministic=True)
    assert not member.keeps_documents
    read(member, "a", ids, KeptPrefix(40, True))
    assert member.document_cache == DocumentCache()


def test_static_shapes_leave_restored_documents_as_they_are(tokenizer, monkeypatch):
    """A compiled forward writes to all slots; a document restored beside a running text is not touched."""
    monkeypatch.setattr(gac_core.model.compiled.torch, "compile", lambda function, **_: function)
    member = member_of("gemma3 with mixed layers", tokenizer, compile=True)
    document = text(1, 40, len(tokenizer))
    read(member, "warm", [*document, 5, 6, 7, 8], KeptPrefix(40))
    other, asked = text(2, 30, len(tokenizer)), [*document, 9, 10, 11, 12]
    read(member, "running", other, release=False)
    read(member, "asked", asked, release=False)
    for _ in range(5):
        for request_id, ids in (("running", other), ("asked", asked)):
            ids.append(13 + len(ids) % 7)
            (result,) = member.forward([Chunk(request_id, len(ids) - 1, (ids[-1],))])
            plain = member._runner._model(torch.tensor([ids])).logits[0, -1:]
            torch.testing.assert_close(result.logits, plain, rtol=1e-3, atol=1e-3)
    assert member._runner.shapes


def test_what_is_kept_takes_no_slot(tokenizer):
    """Neither the slot that a document was read in, nor one to find that it is kept already."""
    member = member_of("llama", tokenizer)
    ids = tuple(text(1, 40, len(tokenizer)))

    def warm(pinned):
        (result,) = member.forward([Chunk("w", 0, ids, 0, keep=KeptPrefix(40, pinned))])
        assert (result.read, result.kept_bytes) == (40, 40 * 768)
        running = member._slots.num_running
        member.release("w")
        return result.computed, running, member.document_cache.pinned_bytes

    assert warm(True) == (40, 1, 40 * 768)
    assert [slot.token_ids for slot in member._slots._slots] == [[]]
    assert warm(None) == (0, 0, 40 * 768)
    assert warm(False) == (0, 0, 0)


def test_beginnings_with_images_are_not_kept(vision_members):  # noqa: F811
    with ensemble_of(vision_members("qwen2_vl").member("eye")) as alone:
        request, _ = alone._input_processor.request(asked("Look: ", picture(1), " What is it in Halkus?"), None, {})
        prompt, (member,) = request.voices[0].text, alone._members
        chunk = Chunk("a", 0, tuple(prompt.token_ids), 1, prompt.images, KeptPrefix(len(prompt.token_ids), True))
        results = [member.forward([chunk])[0] for _ in range(2)]
        assert [result.logits is None for result in results] == [True, False]
        assert [result.kept_bytes for result in results] == [None, None]
        assert member.document_cache == DocumentCache()
