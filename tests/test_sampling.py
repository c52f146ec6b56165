"""Each sampling rule on a handful of tokens."""

from __future__ import annotations

import pytest
import torch

from gac_core.aggregation import arithmetic_mean, normalise
from gac_core.sampling import (
    Sampler,
    SamplingParams,
    apply_temperature,
    invert_cumulative,
    keep_min_p,
    keep_top_k,
    keep_top_p,
    penalise_repetition,
)

P = torch.tensor([0.1, 0.4, 0.2, 0.3, 0.0], dtype=torch.float64)


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


@pytest.mark.parametrize(("uniform", "index"), [(0.0, 0), (0.09, 0), (0.11, 1), (0.49, 1), (0.51, 2), (0.9999999, 3)])
def test_the_cumulative_is_inverted(uniform, index):
    assert invert_cumulative(P, uniform) == index


def draw(sampler):
    token = sampler.pick(P.float())
    sampler.advance()
    return token


def test_samples_follow_the_distribution():
    sampler = Sampler(SamplingParams(temperature=1.0), seed=1)
    counts = torch.bincount(torch.tensor([draw(sampler) for _ in range(8000)]), minlength=5) / 8000
    assert float((counts - P).abs().max()) < 0.02
    assert counts[4] == 0


def test_greedy_takes_the_first_of_equals():
    assert Sampler(SamplingParams(), 0).pick(torch.tensor([0.1, 0.45, 0.45])) == 1


def test_the_mean_is_weighted():
    a, b = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert arithmetic_mean([a, b], normalise([3, 1])).tolist() == [[0.75, 0.25]]
