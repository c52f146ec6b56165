"""How sure and how united the members were, against plain loops in float64."""

from __future__ import annotations

import math
import statistics
from types import SimpleNamespace

import numpy as np
import pytest
import reference
import torch
from conftest import EMBEDDED, QUESTION, ensemble_of, pair, shared_ensemble
from test_drafts import eager

from gac_core import Grammar, RequestError, fold
from gac_core.decoding.agreement import agreement, jensen_shannon
from gac_core.decoding.member_tokens import measure_members, member_tokens

PROMPT = "one two three one two three one two"
FIVE = [[0.5, 0.2, 0.2, 0.1, 0.0], [0.1, 0.6, 0.1, 0.1, 0.1], [0.2, 0.0, 0.0, 0.4, 0.4]]


def measured(distributions, weights, token):
    """The library's figures of distributions that may lack mass."""
    parts = [torch.tensor(each, dtype=torch.float32) for each in distributions]
    mean = sum(weight * part for weight, part in zip(weights, parts, strict=True))
    shared = agreement(parts, [part[token : token + 1] for part in parts])
    return float(shared), float(jensen_shannon(parts, weights, mean / mean.sum()))


def divergence(distributions, weights):
    """The weighted mean of the divergences from the mean (Kullback and Leibler), each distribution by its mass."""
    parts = [np.asarray(each, dtype=np.float64) for each in distributions]
    shares = [weight * part.sum() for weight, part in zip(weights, parts, strict=True)]
    whole = sum(shares)
    mean = sum(weight * part for weight, part in zip(weights, parts, strict=True)) / whole
    total = 0.0
    for share, part in zip(shares, parts, strict=True):
        for p, m in zip(part / part.sum() if share else part, mean, strict=True):
            if p > 0:
                total += share / whole * p * math.log(p / m)
    return total


@pytest.mark.parametrize("weights", [[1 / 3, 1 / 3, 1 / 3], [0.7, 0.2, 0.1]])
def test_divergence_is_that_of_the_definition(weights):
    assert measured(FIVE, weights, 0)[1] == pytest.approx(divergence(FIVE, weights), abs=1e-6)
    masked = [[p * allowed for p, allowed in zip(each, (1, 1, 0, 1, 0), strict=True)] for each in FIVE]
    assert measured(masked, weights, 0)[1] == pytest.approx(divergence(masked, weights), abs=1e-6)
    masked[2] = [0.0] * 5
    assert measured(masked, weights, 0)[1] == pytest.approx(divergence(masked, weights), abs=1e-6)


def test_divergence_has_its_bounds():
    assert measured([FIVE[0], FIVE[0]], [0.3, 0.7], 0)[1] == pytest.approx(0, abs=1e-6)
    apart = [[1.0, 0, 0, 0, 0], [0, 0, 0, 0, 1.0]]
    assert measured(apart, [0.5, 0.5], 0)[1] == pytest.approx(math.log(2), abs=1e-6)


def test_agreement_is_the_share_of_first_choices():
    weights = [1 / 3] * 3
    assert measured(FIVE, weights, 0)[0] == pytest.approx(1 / 3)
    # Of two most probable tokens each is a first choice.
    assert measured(FIVE, weights, 4)[0] == pytest.approx(1 / 3)
    assert measured(FIVE, weights, 2)[0] == 0
    assert measured([FIVE[0], FIVE[0]], [0.5, 0.5], 0)[0] == 1
    assert measured([FIVE[0], [0.0] * 5], [0.5, 0.5], 0)[0] == 0.5


def members_of(entries):
    """The members' entries of several tokens, as the reference gives them."""
    return [[(each.member, each.token) for each in entry.members] for entry in entries], [
        number for entry in entries for each in entry.members for number in (each.probability, each.selected)
    ]


def proposals(trace, names, gate, union):
    """The same from the distributions of the reference; one alone is the gate's."""
    tokens, numbers = [], []
    for parts, pick in trace:
        voices = names if len(parts) > 1 else [gate]
        tokens.append([(name, union[int(part.argmax())]) for name, part in zip(voices, parts, strict=True)])
        numbers += [part[place] / part.sum() for part in parts for place in (int(part.argmax()), pick)]
    return tokens, numbers


def figures(trace):
    """Confidence, agreement and divergence of each step of the reference."""
    for parts, pick in trace:
        mean = sum(parts) / len(parts)
        shared = [int(part.argmax()) == pick for part in parts]
        several = len(parts) > 1
        yield (
            mean[pick] / mean.sum(),
            sum(shared) / len(shared) if several else None,
            divergence(parts, [1 / len(parts)] * len(parts)) if several else None,
        )


@pytest.mark.parametrize("grammar", [None, "tall|small (town|house) in H[a-z]+"])
@pytest.mark.parametrize("threshold", [None, 0.9])
def test_figures_of_an_answer_are_those_of_the_reference(ensemble, plain_members, threshold, grammar):
    trace: list = []
    wanted = None if grammar is None else Grammar.regex(grammar)
    settings = {"gate": ensemble.names.index(ensemble.gate), "threshold": threshold, "trace": trace}
    reference.generate(plain_members, PROMPT, 14, grammar=wanted and reference.Oracle(wanted), **settings)
    output = ensemble.generate(
        PROMPT, max_tokens=14, threshold=threshold, grammar=wanted, token_stats=True, drafts=False
    )
    free = [entry for entry in output.token_stats if not entry.forced]
    assert len(free) == len(trace)
    for entry, want in zip(free, figures(trace), strict=True):
        assert (entry.confidence, entry.agreement, entry.divergence) == pytest.approx(want, abs=2e-5)
        assert entry.ensembled == (entry.agreement is not None)
    assert [entry.token for entry in output.token_stats][: len(output.tokens)] == list(output.tokens)
    union = [*sorted({data for member in plain_members for data in member.ids}), b""]
    tokens, numbers = members_of(free)
    wanted_tokens, wanted_numbers = proposals(trace, ensemble.names, ensemble.gate, union)
    assert tokens == wanted_tokens
    assert numbers == pytest.approx(wanted_numbers, abs=2e-5)
    assert not any(entry.members for entry in output.token_stats if entry.forced)
    stats, compared = output.stats, [entry for entry in free if entry.ensembled]
    assert 0 < len(compared) <= len(free)
    assert (len(compared) == len(free)) == (threshold is None)
    assert stats.confidence == pytest.approx(statistics.fmean(entry.confidence for entry in free))
    assert stats.agreement == pytest.approx(statistics.fmean(entry.agreement for entry in compared))
    assert stats.divergence == pytest.approx(statistics.fmean(entry.divergence for entry in compared))


@pytest.mark.parametrize("asked", [{}, {"threshold": 0.9}, {"temperature": 1.0, "seed": 4}])
def test_figures_are_the_same_with_drafts_and_in_batches(asked):
    prompts = [QUESTION, PROMPT]
    with shared_ensemble(EMBEDDED) as ensemble:
        eager(ensemble)
        plain = [ensemble.generate(p, max_tokens=20, drafts=False, token_stats=True, **asked) for p in prompts]
        drafted = ensemble.generate_batch(prompts, max_tokens=20, token_stats=True, **asked)
    assert sum(output.stats.accepted for output in drafted) > 0
    for one, other in zip(drafted, plain, strict=True):
        for a, b in zip(one.token_stats, other.token_stats, strict=True):
            assert (a.token, a.ensembled, a.agreement) == (b.token, b.ensembled, b.agreement)
            assert (a.confidence, a.divergence) == pytest.approx((b.confidence, b.divergence), abs=2e-5)
        assert one.stats.confidence == pytest.approx(other.stats.confidence, abs=2e-5)
        (tokens, numbers), (same_tokens, same_numbers) = members_of(one.token_stats), members_of(other.token_stats)
        assert tokens == same_tokens
        assert numbers == pytest.approx(same_numbers, abs=2e-5)


def test_a_gate_alone_and_forced_tokens_have_no_agreement(ensemble):
    alone = ensemble.generate(QUESTION, threshold=0.0, max_tokens=4, token_stats=True)
    assert {(entry.agreement, entry.divergence, entry.ensembled) for entry in alone.token_stats} == {
        (None, None, False)
    }
    assert (alone.stats.agreement, alone.stats.divergence) == (None, None)
    assert 0 < alone.stats.confidence <= 1
    forced = ensemble.generate(QUESTION, grammar=Grammar.choices(["Halkus"]), token_stats=True)
    assert all((entry.forced, entry.confidence, entry.agreement) == (True, 1.0, None) for entry in forced.token_stats)
    assert b"".join(entry.token for entry in forced.token_stats) == b"Halkus"
    assert (forced.stats.confidence, forced.stats.agreement) == (None, None)


def test_copies_of_a_member_always_agree():
    with ensemble_of([pair(EMBEDDED[0]), pair(EMBEDDED[0])]) as copies:
        stats = copies.generate(QUESTION, max_tokens=8).stats
    assert stats.agreement == 1
    assert stats.divergence == pytest.approx(0, abs=1e-6)


def test_the_most_probable_token_of_several_is_the_one_with_the_lowest_id():
    class Union:
        def data(self, token):
            return None if token == 4 else b"abcd"[token : token + 1]

    parts = [torch.tensor(each) for each in ([0.1, 0.2, 0.2, 0.0, 0.0], [0.0] * 5, [0.0, 0.25, 0.0, 0.0, 0.75])]
    numbers = measure_members(parts, torch.tensor([2])).tolist()
    # A member without any mass on what a grammar allows has no entry; an end of text has no bytes.
    voices = [SimpleNamespace(name=name, document=None) for name in "mno"]
    first, last = member_tokens(voices, numbers, Union())
    assert (first.member, first.token, last.member, last.token) == ("m", b"b", "o", b"")
    figures = (first.probability, first.selected, last.probability, last.selected)
    assert figures == pytest.approx((0.4, 0.4, 0.75, 0.0))


def test_token_stats_are_given_on_request(ensemble):
    assert ensemble.generate(QUESTION, max_tokens=3).token_stats is None
    chunks = list(ensemble.stream(QUESTION, max_tokens=3, token_stats=True))
    assert all(chunk.token_stats and not chunk.is_silent for chunk in chunks)
    assert fold(chunks).token_stats == tuple(entry for chunk in chunks for entry in chunk.token_stats)
    with pytest.raises(RequestError, match="token_stats must be True or False"):
        ensemble.generate(QUESTION, token_stats=1)
