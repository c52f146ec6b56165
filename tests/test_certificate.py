"""Greedy tokens that are proven from the most probable ones of each voice are those of complete distributions."""

from __future__ import annotations

import functools
import random
from collections import Counter

import pytest
import torch
from compact import PROMPTS, REGEX, assert_same, compactly, counts_of, eager, random_members
from conftest import EMBEDDED, shared_ensemble
from hypothesis import given, settings
from hypothesis import strategies as st

from gac_core.combination import COMBINERS, arithmetic_mean
from gac_core.decoding.certificate import Evidence, Incomplete, Proven, Unprovable, judge
from gac_core.executor.evaluator import top_distributions
from gac_core.shares import normalise

# ---- the verdict, against complete distributions


def evidence(full: torch.Tensor, k: int) -> list[Evidence]:
    """What the most probable tokens of some distributions say."""
    top = top_distributions(full, k)
    columns = zip(top.ids.tolist(), top.probs.tolist(), top.rest.tolist(), strict=True)
    return [Evidence(dict(zip(ids, probs, strict=True)), rest) for ids, probs, rest in columns]


def prove(known, rows, weights):
    """The verdict once everything that verdicts lack is known, and how often they lacked something."""
    for fetches in range(3):
        verdict = judge(known, weights)
        if not isinstance(verdict, Incomplete):
            return verdict, fetches
        for index, ids in enumerate(verdict.ids):
            assert not known[index].probs.keys() & set(ids)
            found = {token: float(rows[index][token]) for token in ids}
            known[index] = Evidence({**known[index].probs, **found}, known[index].rest)
    raise AssertionError("a verdict lacks values again and again")


def distributions(draw: random.Random, steps: int, count: int, size: int) -> torch.Tensor:
    """Random distributions, shape ``[count, steps, size]``: flat or peaked, alike or not, some with ties or masks."""
    generator = torch.Generator().manual_seed(draw.randrange(2**31))
    common = torch.randn((steps, size), generator=generator) * draw.choice([0.0, 0.3, 1.0, 3.0, 10.0])
    logits = common + torch.randn((count, steps, size), generator=generator) * draw.choice([0.1, 1.0, 4.0])
    levels = draw.choice([None, None, 1, 4])
    if levels is not None:
        logits = (logits * levels).round() / levels
    probs = torch.softmax(logits, -1)
    if draw.random() < 0.3:
        probs = probs * (torch.rand((steps, size), generator=generator) < draw.choice([0.03, 0.5]))
    if draw.random() < 0.3:
        # Tokens that only some members have.
        probs = probs * (torch.rand((count, 1, size), generator=generator) < 0.8)
    return probs


def weights_of(draw: random.Random, count: int) -> list[float]:
    return normalise([draw.choice([1.0, 1.0, draw.random() + 0.01, 1e6]) for _ in range(count)])


@pytest.mark.parametrize("size", [3, 300])
def test_proven_tokens_are_those_of_complete_distributions(size):
    """On 10,000 random steps: whatever is proven is right, and what is clear is proven."""
    draw, verdicts = random.Random(size), Counter()
    for _ in range(250):
        count, k = draw.randint(1, 4), draw.choice([1, 2, 5, 20])
        full, weights = distributions(draw, 20, count, size), weights_of(draw, count)
        combined = arithmetic_mean(list(full), weights)
        leading = combined.topk(2).values.tolist()
        known = [evidence(each, k) for each in full]
        for step, (token, (best, second)) in enumerate(zip(combined.argmax(-1).tolist(), leading, strict=True)):
            verdict, fetches = prove([each[step] for each in known], full[:, step], weights)
            if isinstance(verdict, Proven):
                assert verdict.token == token
            else:
                assert isinstance(verdict, Unprovable)
                # Nothing is left open that complete lists of tokens show clearly.
                assert k < size or best <= max(second * (1 + 2e-6), 1e-30)
            verdicts[type(verdict).__name__, min(fetches, 1)] += 1
            assert fetches <= 1
    assert min(verdicts["Proven", 0], verdicts["Unprovable", 0]) > 100
    if size > 3:
        assert min(verdicts["Proven", 1], verdicts["Unprovable", 1]) > 20


def test_values_are_fetched_of_tokens_that_may_win_and_no_others():
    first, second = Evidence({1: 0.5, 2: 0.3}, 0.1), Evidence({3: 0.6, 1: 0.2}, 0.05)
    # Bounds of tokens 1, 2 and 3: exactly 0.35, 0.15 to 0.175 and 0.3 to 0.35.
    assert judge([first, second], [0.5, 0.5]) == Incomplete(((3,), ()))
    assert judge([Evidence({**first.probs, 3: 0.01}, 0.1), second], [0.5, 0.5]) == Proven(1)
    # The only token that can win, whose own probabilities are not all known.
    assert judge([first, Evidence({4: 0.1}, 0.1)], [0.9, 0.1]) == Incomplete(((), (1,)))
    # Tokens outside could have 0.3 by all that is known.
    flat = Evidence({1: 0.31, 2: 0.3}, 0.3)
    assert judge([flat, Evidence({3: 0.31, 4: 0.3}, 0.3)], [0.5, 0.5]) == Incomplete(((3, 4), (1, 2)))
    assert judge([flat, Evidence({1: 0.29, 2: 0.3}, 0.3)], [0.5, 0.5]) == Unprovable()


@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_nothing_is_proven_of_what_is_no_distribution(broken):
    assert judge([Evidence({1: broken, 2: 0.1}, 0.1), Evidence({1: 0.9}, 0.1)], [0.5, 0.5]) == Unprovable()
    assert judge([Evidence({1: 0.0, 2: 0.0}, 0.0)], [1.0]) == Unprovable()
    assert judge([Evidence({1: 1e-38, 2: 1e-39}, 0.0)], [1.0]) == Unprovable()


def test_a_token_that_a_member_lacks_needs_no_fetch():
    class OnlyEven:
        def has(self, token):
            return token % 2 == 0

    first = Evidence({1: 0.9}, 0.05)
    assert judge([first, Evidence({2: 0.5}, 0.1)], [0.6, 0.4]) == Incomplete(((), (1,)))
    assert judge([first, Evidence({2: 0.5}, 0.1, OnlyEven())], [0.6, 0.4]) == Proven(1)


# ---- the law

TOKENS = 16
ASKED = [
    {},
    {"logprobs": 0},
    {"threshold": 0.0},
    {"threshold": 0.5},
    {"threshold": 0.5, "gate_rule": "margin"},
    {"threshold": 1.0},
    {"repetition_penalty": 1.4},
    {"grammar": REGEX},
    {"grammar": REGEX, "threshold": 0.5},
    {"weights": {"m0": 1e6, "m1": 1, "m2": 1}},
    {"weights": {"m0": 1, "m1": 2.5, "m2": 1e6}, "threshold": 0.6},
]


@pytest.fixture(scope="module")
def completely():
    """Outputs by complete distributions, without drafts."""
    with random_members(drafts=[]) as ensemble:
        yield [[ensemble.generate(prompt, max_tokens=TOKENS, **asked) for prompt in PROMPTS] for asked in ASKED]


@pytest.mark.parametrize("k", [1, 20, 5000])
@pytest.mark.parametrize("drafts", [[], ["lookup", "ahead"]])
def test_an_ensemble_writes_the_same_from_the_most_probable_tokens(completely, k, drafts):
    with compactly(k), random_members(drafts=drafts) as ensemble:
        if drafts:
            eager(ensemble)
        drafted = 0
        # Lists as long as the vocabulary take long.
        for asked, wanted in list(zip(ASKED, completely, strict=True))[: 4 if k > 20 else None]:
            alone = [ensemble.generate(prompt, max_tokens=TOKENS, **asked) for prompt in PROMPTS]
            together = ensemble.generate_batch(PROMPTS, max_tokens=TOKENS, **asked)
            for short, full in zip([*alone, *together], [*wanted, *wanted], strict=True):
                assert_same(short, full)
                drafted += short.stats.drafted
                assert short.stats.divergence is None or k == 1
        assert (drafted > 0) == bool(drafts)
        counts = counts_of(ensemble)
    assert counts["at once"] > 100
    if k == 1:
        assert min(counts["values"], counts["whole"]) > 10
    if k == 5000:
        assert counts["at once"] > 0.99 * counts.total()


@settings(max_examples=25, deadline=None)
@given(st.data())
def test_any_request_is_answered_as_by_complete_distributions(data):
    ensemble, short = both_ways()
    asked = {
        "weights": {f"{name}": data.draw(st.sampled_from([1.0, 0.5, 7.0, 1e6])) for name in ensemble.names},
        "threshold": data.draw(st.sampled_from([None, 0.0, 0.3, 0.7, 1.0])),
        "gate": data.draw(st.sampled_from(ensemble.names)),
        "repetition_penalty": data.draw(st.sampled_from([1.0, 1.0, 1.3])),
        "grammar": data.draw(st.sampled_from([None, None, REGEX])),
        "drafts": data.draw(st.booleans()),
        "max_tokens": 12,
    }
    prompt = data.draw(st.sampled_from(PROMPTS))
    assert_same(short.generate(prompt, **asked), ensemble.generate(prompt, **asked))


@functools.cache
def both_ways():
    """The embedded members with complete distributions, and with their most probable tokens; five, so as to fetch."""
    full = shared_ensemble(EMBEDDED)
    with compactly(5):
        return full, shared_ensemble(EMBEDDED)


def test_numbers_are_the_same_bits_without_a_grammar():
    """Confidence, agreement and log-probabilities, where nothing else differs between two runs."""
    fixed = {"deterministic": True, "drafts": []}
    with shared_ensemble(EMBEDDED, **fixed) as full, compactly(3), shared_ensemble(EMBEDDED, **fixed) as short:
        for asked in ({}, {"threshold": 0.6}, {"weights": {"ash": 3.0, "birch": 2.0, "cedar": 1.0}}):
            for prompt in PROMPTS:
                one, other = (each.generate(prompt, max_tokens=20, logprobs=0, **asked) for each in (short, full))
                assert (one.logprobs, one.stats.confidence) == (other.logprobs, other.stats.confidence)
                assert one.stats.agreement == other.stats.agreement
        assert counts_of(short)["values"] > 0


@pytest.mark.parametrize(
    "asked",
    [
        {"temperature": 1.0, "seed": 4},
        {"logprobs": 3},
        {"token_stats": True},
        {"combine": "geometric"},
    ],
)
def test_what_needs_complete_distributions_gets_them(asked):
    with random_members() as full, compactly(), random_members() as short:
        wanted = full.generate(PROMPTS[1], max_tokens=12, **asked)
        got = short.generate(PROMPTS[1], max_tokens=12, **asked)
        assert counts_of(short).total() == 0
    assert_same(got, wanted)
    assert got.stats.divergence == pytest.approx(wanted.stats.divergence, abs=1e-5)
    for one, other in zip(got.token_stats or (), wanted.token_stats or (), strict=True):
        assert one.divergence == pytest.approx(other.divergence, abs=1e-5)


def test_a_rule_without_a_proof_gets_complete_distributions(monkeypatch):
    monkeypatch.setitem(COMBINERS, "largest", lambda probs, weights: torch.stack(list(probs)).amax(0) / len(probs))
    with random_members() as full, compactly(2), random_members() as short:
        asked = {"max_tokens": 12, "combine": "largest"}
        assert short.generate(PROMPTS[1], **asked).tokens == full.generate(PROMPTS[1], **asked).tokens
        assert counts_of(short).total() == 0
