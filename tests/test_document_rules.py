"""Rules over documents: laws that every one obeys, and the values of the definitions by an independent reference."""

from __future__ import annotations

import math

import pytest
import torch

from gac_core import ConfigError, EnsembleConfig, RequestError, SamplingParams
from gac_core.combination.documents import DOCUMENT_RULES, Contrast, document_rule_named
from gac_core.rule_names import DOCUMENT_RULE_NAMES

P = torch.tensor([0.5, 0.3, 0.2, 0.0, 0.0])
Q = torch.tensor([0.05, 0.6, 0.05, 0.3, 0.0])
R = torch.tensor([0.25, 0.25, 0.25, 0.25, 0.0])
PRIOR = torch.tensor([0.6, 0.1, 0.1, 0.2, 0.0])
NOTHING = torch.zeros(5)

RULES = {**DOCUMENT_RULES, "contrast:0": Contrast(0.0), "contrast:2.5": Contrast(2.5)}
rules = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
MASKED = [part * torch.tensor([0.0, 1.0, 1.0, 1.0, 1.0]) for part in (P, Q, R, PRIOR)]


def reference(name, parts, weights, prior):
    """Returns what each document contributes, shape ``[documents, union]``, by plain arithmetic on lists."""
    rows = []
    for part, weight in zip(parts, weights, strict=True):
        probs, base = part.tolist(), prior.tolist()
        mass, base_mass = sum(probs), sum(base)
        own, other = [p / mass for p in probs], [p / base_mass for p in base]
        if name == "mean":
            rows.append([weight * p for p in probs])
        elif name == "confidence":
            rows.append([weight * math.exp(sum(p * math.log(p) for p in own if p)) * p for p in probs])
        else:
            mixed = [(p + q) / 2 for p, q in zip(own, other, strict=True)]
            terms = [*((p, m, 0.5) for p, m in zip(own, mixed, strict=True))]
            terms += [(q, m, 0.5) for q, m in zip(other, mixed, strict=True)]
            beta = sum(half * p * math.log2(p / m) for p, m, half in terms if p)
            given = {"contrast": 0.25, "contrast:jsd": beta}
            beta = given[name] if name in given else float(name.removeprefix("contrast:"))
            gains = [(p / q) ** beta if p else 0.0 for p, q in zip(own, other, strict=True)]
            gains = [gain if p >= max(own) / 10 else min(gain, 1.0) for gain, p in zip(gains, own, strict=True)]
            rows.append([weight * p * gain for p, gain in zip(probs, gains, strict=True)])
    return torch.tensor(rows)


@pytest.mark.parametrize("parts", [(P, Q, R, PRIOR), MASKED], ids=["complete", "masked"])
@pytest.mark.parametrize("name", RULES)
def test_rules_equal_their_definitions(name, parts):
    *parts, prior = parts
    weights = [0.5, 0.3, 0.2]
    want = reference(name, parts, weights, prior)
    merged = want.amax(0) if "contrast" in name else want.sum(0)
    mass = sum(weight * part.sum() for weight, part in zip(weights, parts, strict=True))
    votes = RULES[name](parts, weights, prior)
    torch.testing.assert_close(votes.combined, merged / merged.sum() * mass)
    found = votes.parts(torch.arange(5))
    torch.testing.assert_close(found / found.sum(), want / want.sum())
    torch.testing.assert_close(votes.parts(torch.tensor([3, 1])), found[:, [3, 1]])


@rules
def test_one_document_and_copies_of_all_of_them(rule):
    for parts in ([P], [P, Q]):
        weights = [1.0] if len(parts) == 1 else [0.75, 0.25]
        once = rule(parts, weights, PRIOR).combined
        copies = rule([*parts, *parts], [weight / 2 for weight in weights * 2], PRIOR).combined
        torch.testing.assert_close(copies, once)
    if not isinstance(rule, Contrast):
        assert torch.equal(rule([P], [1.0], PRIOR).combined, P)
        assert torch.equal(rule([P, P], [0.5, 0.5], PRIOR).combined, P)


@rules
def test_documents_that_say_what_the_prior_says_change_nothing(rule):
    for part in (P, P / 2):
        torch.testing.assert_close(rule([part, part], [0.9, 0.1], P).combined, part)


@rules
def test_the_order_of_documents_does_not_matter(rule):
    one = rule([P, Q, R], [0.5, 0.3, 0.2], PRIOR)
    other = rule([R, P, Q], [0.2, 0.5, 0.3], PRIOR)
    torch.testing.assert_close(one.combined, other.combined)
    torch.testing.assert_close(one.parts(torch.arange(5)), other.parts(torch.arange(5))[[1, 2, 0]])


@rules
def test_a_weight_near_one_gives_that_document_alone(rule):
    for weights, part in (([1 - 1e-10, 1e-10], P), ([1e-10, 1 - 1e-10], Q)):
        want = rule([part], [1.0], PRIOR).combined
        torch.testing.assert_close(rule([P, Q], weights, PRIOR).combined, want, atol=1e-6, rtol=0)


@rules
def test_extreme_distributions_give_a_distribution_of_the_means_mass(rule):
    one_hot = torch.eye(5)
    flat, peaked = torch.full((20000,), 5e-5), (torch.arange(20000.0) % 977 / 8).softmax(-1)
    for parts, prior in (
        ([one_hot[0], one_hot[1]], one_hot[2]),
        ([P, NOTHING], PRIOR),
        ([P, Q], NOTHING),
        ([P * 1e-38, Q], PRIOR),
        ([P, Q * 1e-30], PRIOR * 1e-30),
        ([flat, peaked], flat),
        ([flat, peaked], peaked),
    ):
        for weights in ([0.5, 0.5], [1 - 1e-16, 1e-16], [1e-300, 1.0]):
            votes = rule(parts, weights, prior)
            mass = sum(weight * part.sum() for part, weight in zip(parts, weights, strict=True))
            assert bool(torch.isfinite(votes.combined).all())
            assert float(votes.combined.min()) >= 0
            torch.testing.assert_close(votes.combined.sum(), mass, atol=1e-5, rtol=0)
            assert bool(torch.isfinite(votes.parts(torch.arange(5))).all())


@rules
def test_without_any_mass_there_is_nothing(rule):
    """As where a grammar allows no token that any voice can give."""
    assert torch.equal(rule([NOTHING, NOTHING], [0.5, 0.5], NOTHING).combined, NOTHING)


@rules
def test_a_token_without_probability_gets_none(rule):
    votes = rule([P, Q], [0.5, 0.5], R)
    assert float(votes.combined[4]) == 0
    assert votes.parts(torch.tensor([3, 4])).tolist()[0] == [0, 0]


@rules
def test_unusable_distributions_are_not_hidden(rule):
    broken = torch.full_like(P, float("nan"))
    assert not bool(torch.isfinite(rule([P, broken], [0.5, 0.5], PRIOR).combined).all())


def test_contrast_finds_the_document_that_differs_from_the_prior():
    """Three documents repeat the prior; one makes a token probable that the prior does not know."""
    answer = torch.tensor([0.4, 0.0, 0.0, 0.0, 0.6])
    prior = torch.tensor([0.7, 0.1, 0.1, 0.09, 0.01])
    parts, weights = [prior, prior, prior, answer], [0.25] * 4
    assert int(DOCUMENT_RULES["mean"](parts, weights, prior).combined.argmax()) == 0
    assert int(DOCUMENT_RULES["contrast"](parts, weights, prior).combined.argmax()) == 4


def test_improbable_tokens_gain_nothing_by_contrast():
    part = torch.tensor([0.949, 0.05, 1e-3, 0.0, 0.0])
    prior = torch.tensor([0.95, 0.05, 1e-9, 0.0, 0.0])
    torch.testing.assert_close(Contrast(2.0)([part], [1.0], prior).combined, part, atol=2e-3, rtol=0)


def test_without_a_prior_nothing_is_contrasted():
    found = Contrast()([P, Q], [0.5, 0.5], None).combined
    want = torch.maximum(P, Q)
    torch.testing.assert_close(found, want / want.sum())


def test_names_are_checked_and_give_the_rules():
    assert tuple(DOCUMENT_RULES) == DOCUMENT_RULE_NAMES
    assert document_rule_named("contrast:0.5") == Contrast(0.5)
    assert document_rule_named("confidence") is DOCUMENT_RULES["confidence"]
    for name in ("mean", "contrast:1e-1", "contrast", "contrast:jsd"):
        assert SamplingParams(combine_documents=name).combine_documents == name
        assert EnsembleConfig(members=("a",), combine_documents=name).combine_documents == name
    for value in ("sum", 1, "contrast:", "contrast:-1", "contrast:nan", "contrast:1e999", "contrast:1001", "mean "):
        for error, make in (
            (RequestError, lambda value=value: SamplingParams(combine_documents=value)),
            (ConfigError, lambda value=value: EnsembleConfig(members=("a",), combine_documents=value)),
        ):
            with pytest.raises(error, match=r"combine_documents must be one of .*'contrast:BETA'"):
                make()


def test_consensus_refuses_other_rules_than_the_mean():
    SamplingParams(gate_rule="consensus", combine_documents="mean")
    with pytest.raises(RequestError, match=r"certain in combine_documents='mean' alone, not in .*'contrast'"):
        SamplingParams(gate_rule="consensus", combine_documents="contrast")
    with pytest.raises(ConfigError, match="combine_documents='confidence'"):
        EnsembleConfig(members=("a",), gate_rule="consensus", combine_documents="confidence")
