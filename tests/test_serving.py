"""Many requests over a bounded cache: prefixes reused, prompts read in parts, queues with an end."""

from __future__ import annotations

import threading

import pytest
import torch
from architectures import ARCHITECTURES, random_model
from conftest import EMBEDDED, QUESTION, ensemble_of, pair, shared_ensemble, start, tokenizer_of
from hypothesis import given, settings
from hypothesis import strategies as st

from gac_core import ConfigError, Ensemble, EnsembleConfig, MemberConfig, QueueFullError
from gac_core.model.chunk import Chunk
from gac_core.model.member import Member
from gac_core.model.options import MIN_PART_TOKENS
from gac_core.model.prefill import share
from gac_core.model.runner import RowRunner
from gac_core.model.slots import SlotTable, common_prefix_length

LONG = "The Torno Bridge stands in Halkus. It was built in 1874 by Melka Dorin. " * 6


@pytest.fixture(scope="module")
def tokenizer():
    return tokenizer_of(EMBEDDED[0])


def member_of(name, tokenizer, **limits):
    return Member.from_model(random_model(name, tokenizer), tokenizer, "m", **limits)


def ask(member, request_id, ids, start=0, num_logits=1):
    """One chunk, as often as it takes to read all of it."""
    while True:
        (result,) = member.forward([Chunk(request_id, start, tuple(ids[start:]), num_logits)])
        if result.logits is not None:
            assert not isinstance(result.logits, Exception), result.logits
            return result


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


# ---- reading in parts


@pytest.mark.parametrize("threshold", [None, 0.9])
def test_a_prompt_read_in_parts_gives_the_same_text(threshold):
    asked = {"max_tokens": 12, "threshold": threshold}
    prompts = [LONG + "Where is it?", QUESTION, LONG + "Who?", "Who"]
    with shared_ensemble(EMBEDDED) as whole:
        want = [whole.generate(prompt, **asked) for prompt in prompts]
    with shared_ensemble(EMBEDDED, prefill_tokens=16, cache_gib=0) as parts:
        alone = [parts.generate(prompt, **asked) for prompt in prompts]
        together = parts.generate_batch(prompts, **asked)
    assert [o.tokens for o in alone] == [o.tokens for o in together] == [o.tokens for o in want]
    assert [o.stats.steps_ensembled for o in alone] == [o.stats.steps_ensembled for o in want]
    assert alone[0].stats.members["ash"].forwards > want[0].stats.members["ash"].forwards + 5


def test_a_long_prompt_does_not_stall_what_runs():
    with shared_ensemble(EMBEDDED[:1], prefill_tokens=16, max_batch_size=4) as one:
        engine = one._session.worker._engine
        told: list[list[int]] = []
        decode = engine._decoder.decode
        engine._decoder.decode = lambda batch: told.append(list(map(len, out := decode(batch)))) or out
        running = one.stream("passages", temperature=5.0, seed=1, max_tokens=200)
        next(running)
        late = one.generate_batch([LONG], max_tokens=1)
        running.close()
        assert late[0].stats.members["ash"].forwards > 5
        both = [lengths for lengths in told if len(lengths) == 2]
        assert len(both) > 5
        # The running stream got a token at every step in which the long prompt was being read.
        assert all(lengths[0] >= 1 for lengths in both)


@given(st.lists(st.integers(1, 3000), max_size=20), st.integers(2, 600))
def test_budgets_are_kept_and_the_oldest_is_never_starved(lengths, budget):
    shares = share(lengths, budget)
    assert len(shares) == len(lengths)
    assert all(0 <= part <= length for part, length in zip(shares, lengths, strict=True))
    assert sum(shares) == min(sum(lengths), budget)
    if lengths:
        assert shares[0] >= min(lengths[0], budget // 2)


class Clock:
    """A runner whose forwards take ``fixed`` seconds and ``each`` per token, by a clock of its own."""

    def __init__(self, monkeypatch, member, fixed, each):
        self.now, self.parts = 0.0, []
        self._fixed, self._each, self._forward = fixed, each, member._runner.forward
        monkeypatch.setattr(member._runner, "forward", self.forward)
        monkeypatch.setattr("gac_core.model.costs.time.perf_counter", lambda: self.now)

    def forward(self, rows):
        tokens = sum(len(row.token_ids) for row in rows)
        self.parts.append((tokens, self._fixed + self._each * tokens))
        self.now += self.parts[-1][1]
        return self._forward(rows)


@pytest.mark.parametrize("fixed", [0.0, 0.05, 1.0])
@pytest.mark.parametrize("each", [1e-5, 0.002, 0.01, 1.0])
def test_parts_of_a_prompt_take_a_bounded_time(monkeypatch, tokenizer, fixed, each):
    seconds, ids = 0.25, torch.arange(900).remainder(50).add(3).tolist()
    member = member_of("llama", tokenizer, prefill_tokens=256, prefill_seconds=seconds, cache_bytes=0)
    clock = Clock(monkeypatch, member, fixed, each)
    for request_id in ("first", "second"):
        read, logits = 0, None
        while logits is None:
            (result,) = member.forward([Chunk(request_id, read, tuple(ids[read:]), 1)], crowded=True)
            read, logits = read + result.read, result.logits
        member.release(request_id)
    tokens = [tokens for tokens, _ in clock.parts]
    assert sum(tokens) == 2 * len(ids)
    for size, taken in clock.parts:
        # What each forward costs whatever it carries comes on top; no part is shorter than 16 tokens.
        assert size <= MIN_PART_TOKENS or taken <= seconds + fixed + 1e-9
        assert size <= 256
    # As long as they may be: half of what the time allows, and as many tokens as are allowed where that is less.
    allowed = min(256, (seconds - fixed) / each)
    assert max(tokens) >= max(MIN_PART_TOKENS, 0.5 * allowed)


def test_a_lone_request_and_a_deterministic_one_read_whole_parts(monkeypatch, tokenizer):
    for deterministic, crowded, part in ((False, False, 256), (True, True, 128), (True, False, 128)):
        member = member_of("llama", tokenizer, prefill_tokens=256, prefill_seconds=1e-6, deterministic=deterministic)
        clock = Clock(monkeypatch, member, 1.0, 1.0)
        member.forward([Chunk("a", 0, tuple(range(3, 303)), 1)], crowded=crowded)
        assert [tokens for tokens, _ in clock.parts] == [part]


def test_members_know_whether_other_requests_run(monkeypatch):
    with ensemble_of([pair(EMBEDDED[0])]) as one:
        crowded, forward = [], one._members[0].forward

        def noted(chunks, others=False):
            crowded.append(others)
            return forward(chunks, others)

        monkeypatch.setattr(one._members[0], "forward", noted)
        one.generate("Who", max_tokens=3)
        assert not any(crowded)
        one.generate_batch(["Who", "Where"], max_tokens=3)
        assert any(crowded)


def test_texts_do_not_depend_on_the_time_of_parts():
    prompts = [LONG + "Where is it?", QUESTION, LONG + "Who?", "Who"]
    with shared_ensemble(EMBEDDED) as whole:
        want = [whole.generate(prompt, max_tokens=12).tokens for prompt in prompts]
    with shared_ensemble(EMBEDDED, prefill_seconds=1e-6, cache_gib=0) as parts:
        together = parts.generate_batch(prompts, max_tokens=12)
    assert [output.tokens for output in together] == want
    assert together[0].stats.members["ash"].forwards > 12


@pytest.mark.parametrize("value", [0, -1, None, "1", float("nan"), True])
def test_the_time_of_parts_is_checked(value):
    with pytest.raises(ConfigError, match="prefill_seconds"):
        EnsembleConfig(("a",), prefill_seconds=value)


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
    with Ensemble.load([MemberConfig(EMBEDDED[0])], cache_gib=0.5, prefill_tokens=64, prefill_seconds=0.5) as one:
        options = one._members[0].options
        assert (options.cache_bytes, options.prefill_tokens, options.prefill_seconds) == (2**29, 64, 0.5)
