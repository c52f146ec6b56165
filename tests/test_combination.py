"""Combination rules and gate rules: laws that every one obeys, and the values of the published definitions.

Rules are taken from `COMBINERS` and `GATES`, so that a new one is tested against the laws without a change here.
"""

from __future__ import annotations

import math
import pickle
import re

import pytest
import torch

from gac_core import ConfigError, EnsembleConfig, RequestError, SamplingParams
from gac_core.combination import (
    CERTIFIABLE,
    COMBINERS,
    GATES,
    PowerMean,
    Verification,
    combiner_named,
    selective_mean,
)
from gac_core.rule_names import COMBINER_NAMES, GATE_NAMES
from gac_core.shares import normalise

P = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0])
Q = torch.tensor([0.1, 0.6, 0.0, 0.3, 0.0])
R = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0])

POWERS = {f"power:{exponent:g}": PowerMean(exponent) for exponent in (-1.5, -0.5, -1e-9, 1e-9, 1e-3, 0.5, 2)}
EXTREME = {f"power:{exponent:g}": PowerMean(exponent) for exponent in (-1e300, -50, -1e-300, 1e-300, 50, 1e300)}
BAD_POWERS = ["nope", 2, "power:0", "power:-0.0", "power:nan", "power:1e999", "power:", "power: 2", "power:1_0", "min "]

combiners = pytest.mark.parametrize("combine", [*COMBINERS.values(), *POWERS.values()], ids=[*COMBINERS, *POWERS])
all_combiners = pytest.mark.parametrize(
    "combine", [*COMBINERS.values(), *POWERS.values(), *EXTREME.values()], ids=[*COMBINERS, *POWERS, *EXTREME]
)
gates = pytest.mark.parametrize("gate", list(GATES.values()), ids=list(GATES))


@all_combiners
def test_equal_distributions_are_left_as_they_are(combine):
    torch.testing.assert_close(combine([P, P, P], [0.7, 0.2, 0.1]), P)
    torch.testing.assert_close(combine([P], [1.0]), P)


@all_combiners
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


@all_combiners
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


@all_combiners
def test_certain_members_and_tiny_probabilities_are_combined_without_overflow(combine):
    """As with members that disagree and are certain, weights at the limits of floats, and a flat large vocabulary."""
    one_hot = torch.eye(5)
    flat, peaked = torch.full((3, 20000), 5e-5), (torch.arange(60000.0).reshape(3, 20000) % 977 / 8).softmax(-1)
    # The floor of a token with a denormal probability is below the smallest float.
    denormal = torch.tensor([1.0, 1e-43, 2e-45, 0.0, 0.0])
    for probs in (
        [one_hot[0], one_hot[1]],
        [one_hot[0] * 1e-38, P],
        [P, Q * 1e-30],
        [flat, peaked],
        [denormal, one_hot[0]],
        [one_hot[0], denormal],
    ):
        for weights in ([0.5, 0.5], [1 - 1e-16, 1e-16], [1e-300, 1.0]):
            result = combine(probs, weights)
            assert bool(torch.isfinite(result).all())
            mass = sum(weight * part.sum(-1) for part, weight in zip(probs, weights, strict=True))
            torch.testing.assert_close(result.sum(-1), mass, atol=1e-5, rtol=0)


@all_combiners
def test_unusable_logits_are_not_hidden(combine):
    broken = torch.full_like(P, float("nan"))
    assert not bool(torch.isfinite(combine([P, broken], [0.5, 0.5])).all())


def test_the_names_are_those_of_the_rules():
    assert tuple(COMBINERS) == COMBINER_NAMES
    assert tuple(GATES) == GATE_NAMES


def test_the_arithmetic_mean_is_weighted():
    want = torch.tensor([0.4, 0.375, 0.15, 0.075, 0.0])
    torch.testing.assert_close(COMBINERS["arithmetic"]([P, Q], [0.75, 0.25]), want)


def test_the_geometric_mean_needs_probability_from_every_member():
    result = COMBINERS["geometric"]([P, Q], [0.75, 0.25])
    products = torch.tensor([0.5**0.75 * 0.1**0.25, 0.3**0.75 * 0.6**0.25])
    torch.testing.assert_close(result[:2], products / products.sum(), atol=1e-6, rtol=1e-5)
    assert float(result[2:].max()) < 1e-8


def test_power_means_have_the_values_of_their_definition():
    two = [torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.1, 0.6, 0.3])]
    for exponent in (2, 0.5, -1):
        means = (0.75 * two[0] ** exponent + 0.25 * two[1] ** exponent) ** (1 / exponent)
        torch.testing.assert_close(PowerMean(exponent)(two, [0.75, 0.25]), means / means.sum())
    torch.testing.assert_close(PowerMean(1)([P, Q], [0.75, 0.25]), COMBINERS["arithmetic"]([P, Q], [0.75, 0.25]))
    torch.testing.assert_close(PowerMean(1e-9)(two, [0.75, 0.25]), COMBINERS["geometric"](two, [0.75, 0.25]))
    # At both ends of the computation near 0.
    for exponent in (0.01, -0.01):
        near = PowerMean(exponent * 0.9999)([P, Q], [0.75, 0.25])
        torch.testing.assert_close(near, PowerMean(exponent)([P, Q], [0.75, 0.25]), atol=1e-5, rtol=1e-3)


def test_minimum_and_maximum_are_the_limits_of_power_means_for_equal_weights():
    for name, exponent in (("min", -1e30), ("max", 1e30)):
        torch.testing.assert_close(COMBINERS[name]([P, Q], [0.5, 0.5]), PowerMean(exponent)([P, Q], [0.5, 0.5]))
    for name, values in (("min", [0.1, 0.3]), ("max", [0.5, 0.6])):
        result = COMBINERS[name]([P, Q], [0.5, 0.5])
        assert float(result[0] / result[1]) == pytest.approx(values[0] / values[1])
    # A member that cannot write a token counts with a thousandth of the mean.
    result = COMBINERS["min"]([P, Q], [0.5, 0.5])
    assert float(result[3] / result[0]) == pytest.approx(0.15 / 1000 / 0.1)


def test_consistency_weights_have_the_values_of_their_definition():
    """Of two members that differ from the mean alike, the certain one counts more; a token on which all agree most."""
    two = [torch.tensor([0.9, 0.05, 0.05, 0.0]), torch.tensor([0.3, 0.05, 0.35, 0.3])]
    result = COMBINERS["core"](two, [0.5, 0.5])
    assert float(result[0]) > 0.6
    near = [(math.exp(-2 * d) - math.exp(-2)) / (1 - math.exp(-2)) for d in (0.3, 0.0, 0.15, 0.15)]
    agreement = 0.6 * near[0] + 0.05 * near[1] + 0.2 * near[2] + 0.15 * near[3]
    entropies = [-sum(p * math.log(p) for p in probs.tolist() if p) + 0.1 for probs in two]
    want = [near[i] * agreement * sum(float(p[i]) / h for p, h in zip(two, entropies, strict=True)) for i in range(4)]
    torch.testing.assert_close(result, torch.tensor(want) / sum(want))


def test_safe_selects_and_sharpens():
    mean = 0.5 * P + 0.5 * Q
    smooth = COMBINERS["geometric"]([P, Q], [0.5, 0.5])
    torch.testing.assert_close(selective_mean([P, Q], [0.5, 0.5]), smooth)
    # Half of the mass, also where a grammar removed some.
    torch.testing.assert_close(selective_mean([P / 2, Q / 2], [0.5, 0.5]), smooth / 2)
    torch.testing.assert_close(selective_mean([P, Q], [0.1, 0.9]), 0.1 * P + 0.9 * Q)
    # The verifier finds the gate's token most probable.
    torch.testing.assert_close(selective_mean([R, P], [0.9, 0.1]), 0.9 * R + 0.1 * P)
    for gate, probs in enumerate((P, Q)):
        assert torch.equal(selective_mean([P, Q], [0.5, 0.5], Verification(gate, aligned=False)), probs)
    # A grammar has removed all of the gate's mass.
    assert torch.equal(selective_mean([P * 0, Q], [0.5, 0.5], Verification(0, aligned=False)), Q / 2)
    assert not torch.equal(mean, smooth)


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
    entropies = [sum(p * math.log(p) for p in row.tolist() if p) for row in probs]
    torch.testing.assert_close(GATES["entropy"](probs, 0.5), torch.tensor(entropies).exp())
    torch.testing.assert_close(GATES["consensus"](probs, 0.6), torch.tensor([0.2, 0.3]) * 0.6 / 0.4001)
    torch.testing.assert_close(GATES["consensus"](probs, torch.tensor([0.6, 0.8])), torch.tensor([0.12 / 0.4001, 1.0]))
    assert GATES["consensus"](torch.stack([P, R]), 1.0).tolist() == [1.0, 1.0]


def test_where_consensus_is_certain_no_other_members_change_the_winner():
    """For whatever they compute, the worst being all of their mass on the gate's second token; also under a grammar."""
    generator = torch.Generator().manual_seed(3)
    gate = (torch.rand(400, 6, generator=generator) * 8).softmax(-1)
    gate[::2] *= torch.rand(200, 1, generator=generator)
    others = [torch.eye(6)[gate.topk(2).indices[:, 1]], (torch.rand(400, 6, generator=generator) * 20).softmax(-1)]
    certain = 0
    for share in (0.3, 0.5, 0.55, 0.7, 0.9, 0.99):
        mass = gate.sum(-1)
        value = GATES["consensus"](gate / mass[:, None], share * mass / (share * mass + 1 - share))
        sure = value == 1
        for other in others:
            winner = COMBINERS["arithmetic"]([gate, other], [share, 1 - share]).argmax(-1)
            assert torch.equal(winner[sure], gate.argmax(-1)[sure])
        # It is no weaker than it needs to be: with a bit less, the worst others win.
        worst = COMBINERS["arithmetic"]([gate, others[0]], [share, 1 - share]).argmax(-1)
        assert bool((worst[value < 0.999] != gate.argmax(-1)[value < 0.999]).all())
        certain += int(sure.sum())
        assert share > 0.5 or not bool(sure.any())
    assert certain > 200


def test_consensus_needs_the_arithmetic_mean():
    for error, rejected in (
        (ConfigError, lambda **rules: EnsembleConfig(members=["a"], **rules)),
        (RequestError, SamplingParams),
    ):
        with pytest.raises(
            error, match="certain in combine='arithmetic' alone, not in combine='power:2'; give gate_rule="
        ):
            rejected(combine="power:2", gate_rule="consensus")
        assert rejected(combine="arithmetic", gate_rule="consensus").gate_rule == "consensus"


@pytest.mark.parametrize(
    ("field", "names", "wrong"),
    [
        ("combine", [*COMBINERS, "power:2", "power:-0.5", "power:+1e-3"], BAD_POWERS),
        ("gate_rule", list(GATES), ["nope", 1]),
    ],
)
def test_rules_are_chosen_by_their_names(field, names, wrong):
    for name in names:
        assert getattr(EnsembleConfig(members=["a"], **{field: name}), field) == name
        assert getattr(SamplingParams(**{field: name}), field) == name
    known = ", ".join(map(repr, COMBINERS if field == "combine" else GATES))
    for value in wrong:
        message = rf"{field} must be one of {known}.*, not {re.escape(repr(value))}"
        with pytest.raises(ConfigError, match=message):
            EnsembleConfig(members=["a"], **{field: value})
        with pytest.raises(RequestError, match=message):
            SamplingParams(**{field: value})


def test_the_exponent_of_a_power_mean_is_part_of_its_name():
    assert combiner_named("power:-0.5") == PowerMean(-0.5)
    assert combiner_named("harmonic") == combiner_named("power:-1")
    with pytest.raises(
        RequestError, match=r"'power:R' with R a finite number other than 0, such as 'power:0\.5', not 'x'"
    ):
        SamplingParams(combine="x")


@pytest.mark.parametrize("rule", [*COMBINERS.values(), *GATES.values(), PowerMean(2)])
def test_rules_can_be_sent_to_other_processes(rule):
    assert pickle.loads(pickle.dumps(rule)) == rule


def test_linear_rules_alone_are_certifiable():
    """Such a rule's result is the weighted sum of what it makes of single tokens; no other rule is."""
    linear = {
        name
        for name, rule in COMBINERS.items()
        if torch.allclose(rule([P, Q], [0.7, 0.3]), P * 0.7 + Q * 0.3, atol=1e-4)
    }
    assert {COMBINERS[name] for name in linear} == CERTIFIABLE


def test_weights_are_normalised_without_overflow():
    assert normalise([1.0, 3.0]) == [0.25, 0.75]
    assert normalise([1e308, 1e308]) == [0.5, 0.5]


def test_a_rule_that_is_added_to_the_table_is_used_by_requests(ensemble, monkeypatch):
    """With the first distribution alone as the rule, the ensemble generates what its first member generates alone."""
    monkeypatch.setitem(COMBINERS, "first", lambda distributions, weights: distributions[0])
    monkeypatch.setattr("gac_core.rule_names.COMBINER_NAMES", tuple(COMBINERS))
    alone = ensemble.generate("In which town is", gate=ensemble.names[0], threshold=0.0, max_tokens=8)
    assert ensemble.generate("In which town is", combine="first", max_tokens=8).text == alone.text
    assert ensemble.generate("In which town is", max_tokens=8).text != alone.text
