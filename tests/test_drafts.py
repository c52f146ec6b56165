"""Drafts change the cost, never the text."""

from __future__ import annotations

import functools
import gc
import math
import random
import weakref
from collections import Counter

import pytest
import torch
from architectures import ARCHITECTURES, random_model
from conftest import EMBEDDED, QUESTION, ensemble_of, shared_ensemble, start, tokenizer_of

from gac_core import ConfigError, RequestError, fold
from gac_core.decoding.acceptance import (
    AcceptanceRate,
    DraftBudget,
    expected_tokens,
    lookup_length,
    run_ahead_length,
)
from gac_core.decoding.lookup import TextLookup
from gac_core.model.costs import ForwardTimes
from gac_core.tokenization.tokenizer import MemberTokenizer

PROMPTS = [QUESTION, "The bridge stands in", "one two three one two three one two", "1874 crowns, 14:15", "é ü 😀 é ü"]


@pytest.fixture(scope="module")
def tokenizers():
    return [tokenizer_of(folder) for folder in EMBEDDED]


def random_members(tokenizers, **settings):
    """Random members with different tokenizers; sharp ones, so that their texts repeat and differ."""
    names = ["llama", "gpt2", "qwen2"]
    models = [(random_model(name, t, seed), t) for seed, (name, t) in enumerate(zip(names, tokenizers, strict=True))]
    return ensemble_of(models, **settings)


class Flat(ForwardTimes):
    """Forwards that take the same time however many tokens they carry."""

    def __init__(self, seconds):
        super().__init__(torch.device("cpu"), 0.0)
        self.constant = seconds

    def seconds(self, tokens):
        return self.constant


def eager(ensemble):
    """Lets an ensemble draft at every chance, worth it or not."""
    for place, member in enumerate(ensemble._members):
        member.times.seconds = Flat(100.0 if place else 1.0).seconds
    ensemble._session.worker._engine._decoder._lookup.lookup.ENDS = (4, 2, 1)
    return ensemble


@pytest.fixture(scope="module")
def undrafted(tokenizers):
    """Returns the outputs of requests without drafts, each computed once and alone."""
    with random_members(tokenizers, drafts=[]) as ensemble:
        yield functools.cache(lambda *asked: [ensemble.generate(prompt, **dict(asked)) for prompt in PROMPTS])


@pytest.mark.parametrize("drafts", [["lookup"], ["ahead"], ["lookup", "ahead"]])
@pytest.mark.parametrize("threshold", [None, 0.2, 0.6])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafted_text_is_the_plain_text(tokenizers, undrafted, drafts, threshold, temperature):
    asked = {"max_tokens": 40, "threshold": threshold, "temperature": temperature, "seed": 5}
    plain = undrafted(*asked.items())
    with random_members(tokenizers, drafts=drafts) as ensemble:
        eager(ensemble)
        alone = [ensemble.generate(prompt, **asked) for prompt in PROMPTS]
        together = ensemble.generate_batch(PROMPTS, **asked)
        for outputs in (alone, together):
            assert [o.tokens for o in outputs] == [o.tokens for o in plain]
            assert [o.finish_reason for o in outputs] == [o.finish_reason for o in plain]
            assert [o.stats.steps_ensembled for o in outputs] == [o.stats.steps_ensembled for o in plain]
        assert sum(o.stats.drafted for o in plain) == 0
        assert sum(o.stats.drafted for o in alone) > 0


@pytest.mark.parametrize("drafts", [["lookup"], ["ahead"]])
def test_embedded_members_draft_right_and_read_less(ensemble, drafts):
    with shared_ensemble(EMBEDDED, drafts=drafts) as drafting:
        eager(drafting)
        plain = drafting.generate(QUESTION, drafts=False)
        output = drafting.generate(QUESTION)
        assert output.tokens == plain.tokens == ensemble.generate(QUESTION).tokens
        assert 0 < output.stats.accepted <= output.stats.drafted
        forwards = {name: member.forwards for name, member in output.stats.members.items()}
        assert forwards["cedar"] < plain.stats.members["cedar"].forwards


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_one_member_drafts_from_its_own_text(name, tokenizers):
    with ensemble_of([(random_model(name, tokenizers[0]), tokenizers[0])]) as one:
        eager(one)
        plain = [one.generate(prompt, max_tokens=60, drafts=False) for prompt in PROMPTS]
        drafted = [one.generate(prompt, max_tokens=60) for prompt in PROMPTS]
        assert [output.tokens for output in drafted] == [output.tokens for output in plain]
        assert sum(output.stats.drafted for output in drafted) > 0


def test_drafts_obey_stops_limits_penalties_and_logprobs(tokenizers):
    with random_members(tokenizers) as ensemble:
        eager(ensemble)
        whole = ensemble.generate(PROMPTS[2], max_tokens=40, drafts=False)
        for asked in (
            {"max_tokens": 7},
            {"max_tokens": 40, "stop": [whole.text[20:22]]},
            {"max_tokens": 40, "repetition_penalty": 1.4},
            {"max_tokens": 20, "temperature": 1.5, "top_p": 0.9, "top_k": 30, "seed": 3},
        ):
            plain = ensemble.generate(PROMPTS[2], logprobs=2, drafts=False, **asked)
            drafted = ensemble.generate(PROMPTS[2], logprobs=2, **asked)
            assert drafted.text == plain.text
            assert (drafted.finish_reason, drafted.stopped_by) == (plain.finish_reason, plain.stopped_by)
            assert drafted.stats.steps == plain.stats.steps
            for one, other in zip(drafted.logprobs, plain.logprobs, strict=True):
                assert one.token == other.token
                assert one.logprob == pytest.approx(other.logprob, abs=1e-3)


def test_a_full_context_ends_a_drafted_text_where_it_ends_a_plain_one(tokenizers):
    with random_members(tokenizers, contexts=[60, 60, 60]) as ensemble:
        eager(ensemble)
        plain = ensemble.generate("one two one two one two", max_tokens=200, drafts=False)
        drafted = ensemble.generate("one two one two one two", max_tokens=200)
        assert drafted.tokens == plain.tokens
        assert drafted.finish_reason == plain.finish_reason == "length"
        assert drafted.stats.drafted > 0


def test_samples_with_drafts_follow_the_distribution_of_a_plain_mixture(tokenizers):
    """Frequencies of sampled texts against the product of the members' averaged probabilities."""
    with random_members(tokenizers[:2] + tokenizers[:1], drafts=["ahead"]) as ensemble:
        eager(ensemble)
        asked = {"max_tokens": 3, "temperature": 0.6, "top_k": 3, "logprobs": 0}
        streams = [start(ensemble, "Who", **asked, seed=seed) for seed in range(300)]
        streams += [start(ensemble, "Who", **asked, seed=seed, drafts=False) for seed in range(1000, 1300)]
        outputs = [fold(stream) for stream in streams]
        assert sum(output.stats.accepted for output in outputs) > 50
        counts, plain = (Counter(output.tokens for output in half) for half in (outputs[:300], outputs[300:]))
        distance = sum(abs(counts[text] - plain[text]) for text in counts.keys() | plain.keys()) / 600
        # Two samples of 300 from one distribution over some dozen texts differ by about sqrt(k / (pi n)).
        assert distance < 2.5 * math.sqrt(len(counts.keys() | plain.keys()) / (math.pi * 300))


def test_thresholded_drafts_let_the_others_rest():
    """Members other than the gate make no forward at all where the gate is always sure."""
    with shared_ensemble(EMBEDDED) as ensemble:
        eager(ensemble)
        plain = ensemble.generate(QUESTION, threshold=0.0, drafts=False)
        output = ensemble.generate(QUESTION, threshold=0.0)
    assert output.tokens == plain.tokens
    assert output.stats.drafted > 0
    assert [name for name, member in output.stats.members.items() if member.forwards] == ["ash"]
    assert output.stats.members["ash"].forwards < output.stats.steps


def test_a_lookup_finds_what_followed(tokenizers):
    members = [MemberTokenizer(t, str(i)) for i, t in enumerate(tokenizers)]
    lookup = TextLookup()
    voters = [(member, 1.0) for member in members]
    text = b"The Torno Bridge stands in Halkus. It was built in 1874. The Torno Bridge stands"
    found, matched = lookup.find(text, 10)
    assert (found[:11], matched) == (b" in Halkus.", 16)
    tokens = lookup.split(found, 7, voters)
    assert b" in Halkus. It was built".startswith(b"".join(tokens))
    assert tokens
    others = [b"One thing.", b"Another thing here: nothing here comes twice, it is said."]
    assert lookup.find(b"A: nothing here comes twice", 10, others) == (b", it is said.", 16)
    assert lookup.find(text, 0) == (b"", 0)
    assert lookup.find(b"nothing here comes twice", 10) == (b"", 0)
    assert lookup.find(b"", 0) == (b"", 0)
    # What is found may begin in the middle of a character.
    assert lookup.split("ße Br".encode()[1:], 7, voters) == []


def test_a_lookup_keeps_no_tokenizer(tokenizers, monkeypatch):
    monkeypatch.setattr(TextLookup, "MAX_CACHED", 2)
    lookup, found = TextLookup(), b" in Halkus. It was built in 1874 by hand"
    members = [MemberTokenizer(each, "m") for each in tokenizers]
    want = [lookup.split(found, 7, [(member, 1.0)]) for member in members]
    assert all(len(tokens) > 2 for tokens in want)
    # What exceeds the cache is found anew.
    assert [lookup.split(found, 7, [(member, 1.0)]) for member in members] == want
    left = [weakref.ref(member) for member in members]
    del members
    gc.collect()
    assert [each() for each in left] == [None] * len(left)


def linear(slope):
    """Seconds of a step by its number of drafted tokens."""
    return lambda drafted: 1 + slope * drafted


def ahead(own, others, slope):
    """Seconds of a step by its number of the drafter's forwards."""
    return lambda forwards: forwards * own + others * (1 + slope * (forwards - 1))


def test_draft_lengths_follow_their_worth():
    assert expected_tokens(0.5, 1) == 1.5
    assert lookup_length(0.95, linear(0.05), 7) > lookup_length(0.5, linear(0.05), 7) >= 1
    assert lookup_length(0.02, linear(0.1), 7) == 0
    assert lookup_length(0.9, linear(1.6), 7) < lookup_length(0.9, linear(0.1), 7)
    # Two or three tokens may be cheap where four are dear.
    assert lookup_length(0.7, lambda k: [1, 1.1, 1.15, 1.9, 2, 2.1, 2.6, 2.7][k], 7) == 2
    assert lookup_length(0.9, lambda k: 0.0, 7) == 0
    assert lookup_length(0.9, linear(0.1), 7, budget=0.25) == 2
    assert run_ahead_length(0.9, ahead(1, 1, 0.1), 2, 8) > 1
    assert run_ahead_length(0.3, ahead(1, 1, 0.1), 2, 8) == 1
    # A gate that hardly needs the others gains nothing by running ahead of them.
    assert run_ahead_length(0.9, ahead(1, 1, 0.1), 1.05, 8) == 1
    # A small gate before large members runs further.
    assert run_ahead_length(0.9, ahead(0.1, 1, 0.01), 1.1, 8) > run_ahead_length(0.9, ahead(1, 1, 0.01), 2, 8)
    assert run_ahead_length(0.9, ahead(0.1, 1, 0.01), 1.1, 8, budget=0.3) == 3


def test_rates_are_learnt_per_request_and_by_all():
    tally = AcceptanceRate(4, 1)
    rates = []
    for drafted, accepted in ((5, 0), (5, 0), (5, 5), (0, 0)):
        tally.record(drafted, accepted)
        rates.append(tally.value)
    assert rates[1] < rates[0] < 0.8
    assert rates[2] > rates[1]
    assert rates[3] == rates[2]
    before = tally.value
    tally.relax()
    assert tally.value > before
    child = tally.child()
    assert child.value == pytest.approx(tally.value)
    before = tally.value
    child.record(5, 0)
    assert child.value < tally.value < before


@pytest.mark.parametrize("slope", [0.01, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("truth", [0.0, 0.3, 0.8, 1.0])
def test_drafts_lose_little_and_gain_where_they_are_right(slope, truth):
    """A thousand steps of prompt lookup whose tokens are right with a given chance, in units of a plain step."""
    chance = random.Random(0)
    tally, balance, cost = AcceptanceRate(1, 1), DraftBudget(), linear(slope)
    seconds = tokens = 0.0
    for _ in range(1000):
        length = lookup_length(tally.value, cost, 7, balance.available(1.0))
        right = 0
        while right < length and chance.random() < truth:
            right += 1
        if length:
            tally.record(length, right)
        else:
            tally.relax()
        balance.record(1.0, right - (cost(length) - 1.0))
        seconds += cost(length)
        tokens += 1 + right
    assert seconds <= 1.02 * tokens + DraftBudget.START
    if truth == 1.0 and slope <= 0.5:
        assert seconds < tokens / 1.5


def test_times_of_forwards_are_medians_by_size():
    times = ForwardTimes(torch.device("cpu"), 0.5)
    assert times.seconds(4) == 0.0
    # The first forward of a size is not counted: it may compile.
    for seconds in (50.0, 1.0, 9.0, 1.0):
        times.note(1, seconds)
    assert times.seconds(1) == 1.0
    assert times.seconds(3) == 2.0
    times.note(5, 100.0)
    assert times.seconds(3) == 2.0
    times.note(5, 2.0)
    assert times.seconds(3) == 1.5
    assert times.seconds(7) == pytest.approx(2.0 * 4 / 3)
    assert times.total == 163.0
    for _ in range(2):
        with times.timed(2):
            pass
    assert times.total > 163.0
    assert 0 < times.seconds(2) < 1.0
    before = times.total, times.seconds(2)
    with pytest.raises(ValueError, match="broken"), times.timed(2):
        raise ValueError("broken")
    assert (times.total, times.seconds(2)) == before


def test_a_step_of_unknown_cost_leaves_the_first_draft_its_credit():
    balance = DraftBudget()
    balance.record(0.0, 0.0)
    assert balance.available(2.0) == 2.0 * DraftBudget.START


def test_wrong_settings_are_refused(ensemble, tokenizers):
    with pytest.raises(RequestError, match="drafts"):
        ensemble.generate("Who", drafts="lookup")
    with pytest.raises(ConfigError, match="drafts must be"):
        random_members(tokenizers, drafts=["guess"])
