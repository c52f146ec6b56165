"""Combination rules and gate rules: laws that every one obeys, and the values of the published definitions.

Rules are taken from `COMBINERS` and `GATES`, so that a new one is tested against the laws without a change here.
"""

from __future__ import annotations

import pytest
import torch

from gac_core import ConfigError, EnsembleConfig, RequestError, SamplingParams
from gac_core.combination import COMBINERS, GATES, normalise

P = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0])
Q = torch.tensor([0.1, 0.6, 0.0, 0.3, 0.0])
R = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0])

combiners = pytest.mark.parametrize("combine", list(COMBINERS.values()), ids=list(COMBINERS))
gates = pytest.mark.parametrize("gate", list(GATES.values()), ids=list(GATES))


@combiners
def test_equal_distributions_are_left_as_they_are(combine):
    torch.testing.assert_close(combine([P, P, P], [0.7, 0.2, 0.1]), P)
    torch.testing.assert_close(combine([P], [1.0]), P)


@combiners
def test_equal_distributions_keep_their_mass(combine):
    """Under a grammar, where the mass of the forbidden tokens was removed."""
    torch.testing.assert_close(combine([P / 2, P / 2, P / 2], [0.7, 0.2, 0.1]), P / 2)
    torch.testing.assert_close(combine([P / 2], [1.0]), P / 2)


@combiners
def test_a_weight_near_one_gives_that_distribution(combine):
    # The tolerance allows an error in proportion to the square root of the small weight.
    for weights, want in (([1 - 1e-10, 1e-10], P), ([1e-10, 1 - 1e-10], Q)):
        torch.testing.assert_close(combine([P.double(), Q.double()], weights), want.double(), atol=1e-5, rtol=0)
        torch.testing.assert_close(combine([P, Q], weights), want, atol=1e-5, rtol=0)


@combiners
def test_a_combination_is_a_distribution_over_the_tokens_of_its_members(combine):
    result = combine([P, Q, R], [0.5, 0.25, 0.25])
    assert result.dtype == torch.float32
    assert float(result.sum()) == pytest.approx(1, abs=1e-6)
    assert float(result.min()) >= 0
    assert float(result[4]) == 0


@combiners
def test_positions_are_combined_independently(combine):
    together = combine([torch.stack([P, Q]), torch.stack([Q, R])], [0.6, 0.4])
    torch.testing.assert_close(together, torch.stack([combine([P, Q], [0.6, 0.4]), combine([Q, R], [0.6, 0.4])]))


@combiners
def test_unusable_logits_are_not_hidden(combine):
    broken = torch.full_like(P, float("nan"))
    assert not bool(torch.isfinite(combine([P, broken], [0.5, 0.5])).all())


def test_the_arithmetic_mean_is_weighted():
    want = torch.tensor([0.4, 0.375, 0.15, 0.075, 0.0])
    torch.testing.assert_close(COMBINERS["arithmetic"]([P, Q], [0.75, 0.25]), want)


def test_the_geometric_mean_needs_probability_from_every_member():
    result = COMBINERS["geometric"]([P, Q], [0.75, 0.25])
    products = torch.tensor([0.5**0.75 * 0.1**0.25, 0.3**0.75 * 0.6**0.25])
    torch.testing.assert_close(result[:2], products / products.sum(), atol=1e-6, rtol=1e-5)
    assert float(result[2:].max()) < 1e-8


@gates
def test_certainty_is_between_none_and_all(gate):
    one_hot = torch.tensor([0.0, 1.0, 0.0, 0.0, 0.0])
    certainty = gate(torch.stack([P, Q, R, one_hot]), 0.75)
    assert certainty.shape == (4,)
    assert bool(((certainty >= 0) & (certainty <= 1)).all())
    assert float(certainty[3]) == 1
    assert float(certainty[2]) == certainty.min()


def test_gate_rules_have_the_values_of_their_definitions():
    probs = torch.stack([P, Q])
    torch.testing.assert_close(GATES["confidence"](probs, 0.5), torch.tensor([0.5, 0.6]))
    torch.testing.assert_close(GATES["margin"](probs, 0.5), torch.tensor([0.2, 0.3]))
    assert GATES["margin"](torch.ones(1, 1), 0.5).tolist() == [1.0]


@pytest.mark.parametrize(("field", "table"), [("combine", COMBINERS), ("gate_rule", GATES)])
def test_rules_are_chosen_by_their_key(field, table):
    for name in table:
        assert getattr(EnsembleConfig(members=["a"], **{field: name}), field) == name
        assert getattr(SamplingParams(**{field: name}), field) == name
    with pytest.raises(ConfigError, match=f"{field} must be one of {', '.join(map(repr, table))}, not 'nope'"):
        EnsembleConfig(members=["a"], **{field: "nope"})
    with pytest.raises(RequestError, match=f"{field} must be one of {', '.join(map(repr, table))}, not 'nope'"):
        SamplingParams(**{field: "nope"})


def test_weights_are_normalised_without_overflow():
    assert normalise([1.0, 3.0]) == [0.25, 0.75]
    assert normalise([1e308, 1e308]) == [0.5, 0.5]


def test_a_rule_that_is_added_to_the_table_is_used_by_requests(ensemble, monkeypatch):
    """With the first distribution alone as the rule, the ensemble generates what its first member generates alone."""
    monkeypatch.setitem(COMBINERS, "first", lambda distributions, weights: distributions[0])
    alone = ensemble.generate("In which town is", gate=ensemble.names[0], threshold=0.0, max_tokens=8)
    assert ensemble.generate("In which town is", combine="first", max_tokens=8).text == alone.text
    assert ensemble.generate("In which town is", max_tokens=8).text != alone.text
