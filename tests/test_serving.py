"""Many requests over a bounded cache: reused prefixes, slots, and a bounded queue."""

from __future__ import annotations

import threading

import pytest
import torch
from architectures import ARCHITECTURES, random_model
from chunks import ask, member_of
from conftest import EMBEDDED, ensemble_of, pair, shared_ensemble, start
from hypothesis import given, settings
from hypothesis import strategies as st

from gac_core import Ensemble, MemberConfig, QueueFullError
from gac_core.model.entries import common_prefix_length
from gac_core.model.member import Member
from gac_core.model.row_runner import RowRunner
from gac_core.model.slots import SlotTable

LONG = "The Torno Bridge stands in Halkus. It was built in 1874 by Melka Dorin. " * 6


# ---- prefixes


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_reused_beginnings_give_the_logits_of_a_text_read_anew(name, tokenizer):
    member = member_of(name, tokenizer)
    ids = torch.randint(3, len(tokenizer), (90,), generator=torch.Generator().manual_seed(2)).tolist()
    other = [*ids[:50], *ids[:20]]
    first = ask(member, "a", ids)
    assert first.computed == 90
    # Beside a running request its beginning is copied; after it, taken over.
    second = ask(member, "b", other)
    assert second.computed == 20
    member.release("a")
    third = ask(member, "c", ids)
    assert third.computed == 1
    member.release("b")
    member.release("c")
    fourth = ask(member, "d", ids[:70])
    assert fourth.computed == 1
    plain = Member.from_model(random_model(name, tokenizer), tokenizer, "p", cache_bytes=0)
    for result, text in ((second, other), (third, ids), (fourth, ids[:70])):
        cold = ask(plain, "cold", text)
        plain.release("cold")
        torch.testing.assert_close(result.logits, cold.logits, rtol=2e-4, atol=2e-4)


def test_a_member_without_slots_goes_on_from_a_whole_text_only(tokenizer):
    member = member_of("llama", tokenizer)
    member._runner = RowRunner(random_model("llama", tokenizer))
    member._slots = SlotTable(member._runner, 2**30)
    ids = list(range(3, 63))
    first = ask(member, "a", ids[:40])
    member.release("a")
    second = ask(member, "b", ids)
    assert (first.computed, second.computed) == (40, 20)
    member.release("b")
    third = ask(member, "c", ids[:50])
    assert third.computed == 50
    fresh = member_of("llama", tokenizer)
    torch.testing.assert_close(second.logits, ask(fresh, "x", ids).logits, rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(third.logits, ask(fresh, "y", ids[:50]).logits, rtol=2e-4, atol=2e-4)


def test_a_second_question_on_the_same_documents_reads_only_what_is_new():
    with shared_ensemble(EMBEDDED) as ensemble:
        cold = ensemble.generate(LONG + "Where is it?", max_tokens=8)
        warm = ensemble.generate(LONG + "Who built it?", max_tokens=8)
        assert all(stats.reused_tokens == 0 for stats in cold.stats.members.values())
        for stats in warm.stats.members.values():
            assert stats.reused_tokens > 0.8 * stats.prompt_tokens
    with shared_ensemble(EMBEDDED, cache_gib=0) as ensemble:
        again = ensemble.generate(LONG + "Who built it?", max_tokens=8)
        assert again.tokens == warm.tokens
        more = ensemble.generate(LONG + "Who built it?", max_tokens=8)
        assert more.tokens == warm.tokens
        assert all(stats.reused_tokens == 0 for stats in more.stats.members.values())


def test_equal_prompts_that_arrive_together_are_read_once():
    with shared_ensemble(EMBEDDED[:1]) as one:
        outputs = one.generate_batch([LONG + "Who?"] * 6, max_tokens=4)
        assert len({output.tokens for output in outputs}) == 1
        read = sum(output.stats.members["ash"].tokens for output in outputs)
        assert read < 2 * outputs[0].stats.members["ash"].prompt_tokens


# ---- the slots


class FakeStore:
    """Slots as lists, to be checked against what the table believes."""

    supports_truncation = True

    def __init__(self):
        self.slots = [[] for _ in range(200)]
        self.kept = 0

    def bytes_for(self, slots, length):
        return slots * 100

    def reserve(self, slots, length):
        self.kept = max(self.kept, slots)

    def shrink(self, slots, length):
        self.kept = min(self.kept, slots)

    def copy(self, source, target, length):
        self.slots[target][:length] = self.slots[source][:length]

    def swap(self, one, other, length):
        assert len(self.slots) > max(one, other)
        a, b = list(self.slots[one]), list(self.slots[other])
        self.slots[one][:length], self.slots[other][:length] = b[:length], a[:length]

    def clear(self, slot):
        self.slots[slot] = []


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3), st.integers(1, 40), st.booleans()), max_size=60))
def test_the_table_never_believes_what_the_store_does_not_hold(actions):
    store = FakeStore()
    table = SlotTable(store, 800)
    texts: dict[str, list[int]] = {}
    for number, kind, length, clear in actions:
        name = str(number)
        if name in texts:
            table.release(name, clear)
            del texts[name]
        else:
            ids = [kind] * 20 + [number] * length
            slot = table.claim(name, ids)
            known = common_prefix_length(slot.token_ids, ids)
            store.slots[slot.index][known:] = ids[known:]
            slot.token_ids[known:] = ids[known:]
            texts[name] = ids
        for request, ids in texts.items():
            slot = table.find(request)
            assert slot is not None
            assert slot.index < table.num_running
            assert slot.token_ids == ids == store.slots[slot.index][: len(ids)]
        for index, slot in enumerate(table._slots):
            assert slot.index == index
            assert (slot.request_id is None) == (index >= table.num_running)
            assert store.slots[index][: len(slot.token_ids)] == slot.token_ids
        assert table.num_running == len(texts)
        assert len(table._slots) <= max(8, table.num_running)


def test_the_least_recently_used_text_makes_room():
    store = FakeStore()
    table = SlotTable(store, 300)
    texts = {name: [index] * 30 for index, name in enumerate("abcd")}
    for name in "abc":
        table.claim(name, texts[name]).token_ids[:] = texts[name]
        table.release(name)
    table.claim("b2", texts["b"])
    table.release("b2")
    table.claim("d", texts["d"]).token_ids[:] = texts["d"]
    table.release("d")
    held = [slot.token_ids for slot in table._slots]
    assert texts["a"] not in held
    assert all(texts[name] in held for name in "bcd")


def test_memory_is_what_its_formula_says_and_does_not_grow(tokenizer):
    member = member_of("llama", tokenizer, cache_bytes=400_000)
    cache = member._runner._cache
    # Two of keys and values, three layers, two heads of 16, four bytes.
    assert cache.position_bytes == 2 * 3 * 2 * 16 * 4
    sizes = []
    for index in range(60):
        ids = torch.randint(3, len(tokenizer), (40 + index % 7,), generator=torch.Generator().manual_seed(index))
        ask(member, str(index), ids.tolist())
        layer = cache._slot_layers[0]
        assert cache.nbytes == layer.num_slots * layer.capacity * cache.position_bytes
        assert cache.nbytes <= 400_000
        sizes.append(cache.nbytes)
        member.release(str(index))
    assert max(sizes) == sizes[-1] == sizes[len(sizes) // 2]


def test_room_taken_by_one_long_text_is_given_back(tokenizer):
    member = member_of("llama", tokenizer, cache_bytes=100_000)
    cache = member._runner._cache
    ask(member, "long", [5] * 250)
    high = cache.nbytes
    member.release("long")
    for index in range(3):
        ask(member, str(index), [7 + index] * 20)
        member.release(str(index))
    assert cache.nbytes <= max(high, 100_000)
    assert cache._slot_layers[0].capacity < 256 or cache.nbytes <= 100_000


# ---- the queue


def test_a_full_queue_refuses_and_frees_again():
    with ensemble_of([pair(EMBEDDED[0])], max_batch_size=1, max_queue=1) as one:
        asked = {"temperature": 5.0, "seed": 1, "max_tokens": 900}
        first = one.stream("passages " * 20, **asked)
        next(first)
        second = start(one, "Who")
        with pytest.raises(QueueFullError, match="max_queue") as caught:
            one.generate("Who")
        assert caught.value.limit == 2
        first.close()
        assert list(second)[-1].output is not None
        assert one.generate("Who", max_tokens=2).tokens
        # A batch waits for room instead.
        assert len(one.generate_batch(["Who"] * 7, max_tokens=3)) == 7


def test_waiting_for_room_ends_when_the_ensemble_closes():
    from gac_core import EngineClosedError

    one = ensemble_of([pair(EMBEDDED[0])], max_batch_size=1, max_queue=0)
    stream = one.stream("passages " * 20, temperature=5.0, seed=1, max_tokens=900)
    next(stream)
    errors = []

    def batch():
        try:
            one.generate_batch(["Who"])
        except EngineClosedError as error:
            errors.append(error)

    thread = threading.Thread(target=batch)
    thread.start()
    one.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(errors) == 1


def test_settings_reach_the_members():
    with Ensemble.load([MemberConfig(EMBEDDED[0])], cache_gib=0.5, prefill_tokens=64) as one:
        options = one._members[0].options
        assert (options.cache_bytes, options.prefill_tokens) == (2**29, 64)
