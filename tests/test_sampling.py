"""Each sampling rule on a handful of tokens."""

from __future__ import annotations

import hashlib
import math

import pytest
import torch

from gac_core.combination import arithmetic_mean
from gac_core.decoding.sampler import (
    Sampler,
    apply_temperature,
    exponentials,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    race,
)
from gac_core.executor.evaluator import penalise_repetition
from gac_core.sampling import SamplingParams
from gac_core.shares import normalise

P = torch.tensor([0.1, 0.4, 0.2, 0.3, 0.0], dtype=torch.float64)
PROMPT = "The Torno Bridge stands in Halkus.\n\nQuestion: Where is the Torno Bridge?"
KEYS = torch.tensor([3**39, -(5**26), 7, 2**61 + 9, -1])


def close(got, want):
    torch.testing.assert_close(got, torch.tensor(want, dtype=torch.float64))


def test_temperature_is_a_power():
    close(apply_temperature(P, 0.5), [0.01 / 0.30, 0.16 / 0.30, 0.04 / 0.30, 0.09 / 0.30, 0.0])
    close(apply_temperature(P, 1.0), P.tolist())


def test_cuts_keep_and_renormalise():
    close(keep_top_k(P, 2), [0, 0.4 / 0.7, 0, 0.3 / 0.7, 0])
    close(keep_top_k(P, 9), P.tolist())
    close(keep_top_p(P, 0.5), [0, 0.4 / 0.7, 0, 0.3 / 0.7, 0])
    close(keep_top_p(P, 0.4), [0, 1, 0, 0, 0])
    close(keep_top_p(P, 1.0), P.tolist())
    close(keep_min_p(P, 0.6), [0, 0.4 / 0.7, 0, 0.3 / 0.7, 0])


def test_repetition_divides_positive_and_multiplies_negative_logits():
    got = penalise_repetition(torch.tensor([2.0, -2.0, 1.0]), torch.tensor([0, 1]), 2.0)
    assert got.tolist() == [1.0, -4.0, 1.0]


def splitmix(seed, place, key):
    """The number of `exponentials` that belongs to a key, in plain integers."""
    word = int.from_bytes(hashlib.blake2b(f"{seed} {place}".encode(), digest_size=8).digest(), "little")
    word = (word + key) % 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    word ^= word >> 31
    return -math.log(((word >> 12) + 0.5) * 2**-52)


@pytest.mark.parametrize("seed", [0, 1, -1, 2**70])
def test_random_numbers_are_a_function_of_seed_place_and_token(seed):
    keys = [-(2**63), -5, 0, 1, 2**40, 2**63 - 1]
    got = exponentials(torch.tensor(keys), seed, 3)
    assert got.tolist() == pytest.approx([splitmix(seed, 3, key) for key in keys], rel=1e-12)


def test_rounding_does_not_change_draws():
    """Flat distributions over a large vocabulary, of which inverting the cumulative changed 3 draws."""
    generator = torch.Generator().manual_seed(0)
    keys = torch.randint(2**62, (20_000,), generator=generator)
    for place in range(400):
        logits = 2 * torch.randn(20_000, generator=generator)
        rounded = logits + 3e-5 * torch.randn(20_000, generator=generator)
        one, other = (torch.softmax(each, -1).double() for each in (logits, rounded))
        assert race(one, keys, 7, place) == race(other, keys, 7, place)


def draw(sampler):
    token = sampler.pick(P.float(), KEYS)
    sampler.advance()
    return token


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_samples_follow_the_distribution(seed):
    """Pearson's chi-squared test, over the places of one text."""
    sampler = Sampler(SamplingParams(temperature=1.0), seed)
    counts = torch.bincount(torch.tensor([draw(sampler) for _ in range(8000)]), minlength=5).double()
    assert counts[4] == 0
    wanted = 8000 * P[:4]
    # Three degrees of freedom: 16.3 is passed by one in a thousand.
    assert float(((counts[:4] - wanted) ** 2 / wanted).sum()) < 16.3


def test_samples_of_many_seeds_follow_the_distribution():
    counts = torch.bincount(torch.cat([race(P, KEYS, seed, 0) for seed in range(8000)]), minlength=5).double()
    wanted = 8000 * P[:4]
    assert float(((counts[:4] - wanted) ** 2 / wanted).sum()) < 16.3


@pytest.mark.parametrize(
    ("truncation", "kept"),
    [
        ({"top_k": 1}, {1}),
        ({"top_k": 2}, {1, 3}),
        ({"top_p": 0.4}, {1}),
        ({"top_p": 0.5}, {1, 3}),
        ({"min_p": 0.6}, {1, 3}),
        ({"min_p": 1.0}, {1}),
        ({}, {0, 1, 2, 3}),
    ],
)
def test_truncations_limit_what_is_drawn(truncation, kept):
    sampler = Sampler(SamplingParams(temperature=1.0, **truncation), 0)
    assert {int(draw(sampler)) for _ in range(400)} == kept


@pytest.mark.parametrize(
    ("params", "kept"),
    [
        # In another order, each of these keeps two tokens.
        ({"temperature": 0.5, "top_p": 0.5}, {1}),
        ({"temperature": 0.5, "min_p": 0.6}, {1}),
        ({"temperature": 1.0, "top_k": 2, "top_p": 0.55}, {1}),
        # In another order, this keeps one.
        ({"temperature": 1.0, "top_p": 0.55, "min_p": 0.6}, {1, 3}),
    ],
)
def test_temperature_then_top_k_then_top_p_then_min_p(params, kept):
    sampler = Sampler(SamplingParams(**params), 0)
    assert {int(draw(sampler)) for _ in range(400)} == kept


@pytest.mark.parametrize("drafts", [True, False])
@pytest.mark.parametrize("truncation", [{"top_k": 1}, {"top_p": 1e-6}, {"min_p": 1.0}])
def test_requests_truncated_to_one_token_are_greedy(ensemble, truncation, drafts):
    asked = {"max_tokens": 12, "drafts": drafts}
    greedy = ensemble.generate(PROMPT, **asked)
    sampled = {"temperature": 5.0, "seed": 1, **asked}
    assert ensemble.generate(PROMPT, **sampled, **truncation).tokens == greedy.tokens
    assert ensemble.generate(PROMPT, **sampled).tokens != greedy.tokens


def test_a_repetition_penalty_of_a_request_changes_its_text(ensemble):
    plain = ensemble.generate(PROMPT, max_tokens=12)
    assert ensemble.generate(PROMPT, max_tokens=12, repetition_penalty=3.0).tokens != plain.tokens


def test_greedy_takes_the_first_of_equals():
    assert Sampler(SamplingParams(), 0).pick(torch.tensor([0.1, 0.45, 0.45]), KEYS[:3]) == 1


def test_the_mean_is_weighted():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert arithmetic_mean([a, b], normalise([3, 1])).tolist() == [[0.75, 0.25]]


def test_weights_of_any_size_are_shares():
    assert normalise([1e308, 1e308]) == [0.5, 0.5]
    assert normalise([1e-300, 3e-300]) == [0.25, 0.75]


def test_the_smallest_temperatures_keep_the_most_probable_token():
    assert apply_temperature(torch.tensor([0.0001, 0.9, 0.0999], dtype=torch.float64), 1e-310).tolist() == [
        0.0,
        1.0,
        0.0,
    ]
