"""Long prompts are read in parts of bounded size and time, which change no text."""

from __future__ import annotations

import pytest
import torch
from chunks import member_of
from conftest import EMBEDDED, QUESTION, ensemble_of, pair, shared_ensemble
from hypothesis import given
from hypothesis import strategies as st

from gac_core import ConfigError, EnsembleConfig
from gac_core.model.chunk import Chunk
from gac_core.model.options import MIN_PART_TOKENS
from gac_core.model.prefill import share

LONG = "The Torno Bridge stands in Halkus. It was built in 1874 by Melka Dorin. " * 6


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
    member = member_of("llama", tokenizer, prefill_tokens=256, cache_bytes=0)
    clock = Clock(monkeypatch, member, fixed, each)
    for request_id in ("first", "second"):
        read, logits = 0, None
        while logits is None:
            (result,) = member.forward([Chunk(request_id, read, tuple(ids[read:]), 1)], seconds)
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
    for deterministic, seconds, part in ((False, None, 256), (True, 1e-6, 128), (True, None, 128)):
        member = member_of("llama", tokenizer, prefill_tokens=256, deterministic=deterministic)
        clock = Clock(monkeypatch, member, 1.0, 1.0)
        member.forward([Chunk("a", 0, tuple(range(3, 303)), 1)], seconds)
        assert [tokens for tokens, _ in clock.parts] == [part]


def test_members_know_whether_other_requests_run(monkeypatch):
    with ensemble_of([pair(EMBEDDED[0]), pair(EMBEDDED[1])], prefill_seconds=0.5) as two:
        limits, forward = set(), two._members[0].forward

        def noted(chunks, prefill_seconds=None):
            limits.add(prefill_seconds)
            return forward(chunks, prefill_seconds)

        monkeypatch.setattr(two._members[0], "forward", noted)
        two.generate("Who", max_tokens=3)
        assert limits == {None}
        two.generate_batch(["Who", "Where"], max_tokens=3)
        # Half of the time for each of two members.
        assert 0.25 in limits


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
