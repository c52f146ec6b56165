"""Combination rules and gate rules in requests: the same text with drafts and in batches, and what a gate saves."""

from __future__ import annotations

import functools
from contextlib import contextmanager
from dataclasses import replace

import pytest
import reference
from architectures import random_model
from conftest import EMBEDDED, QUESTION, STORIES, ensemble_of, pair, shared_ensemble, tokenizer_of
from faulty import fail_at, faulty_ensemble, healed
from test_drafts import eager
from test_reference import assert_equal

from gac_core import Grammar, RequestError
from gac_core.decoding import step
from gac_core.decoding.verification import verified

PROMPTS = [QUESTION, "one two three one two three one two", "é ü 😀 é ü"]
MODELS = ["llama", "gpt2", "qwen2"]


@contextmanager
def random_members(drafts):
    """Random members with different tokenizers, which draft at every chance."""
    tokenizers = [tokenizer_of(folder) for folder in EMBEDDED]
    models = [(random_model(name, t, seed), t) for seed, (name, t) in enumerate(zip(MODELS, tokenizers, strict=True))]
    with ensemble_of(models, drafts=drafts) as ensemble:
        yield eager(ensemble) if drafts else ensemble


@pytest.fixture(scope="module")
def undrafted():
    """Returns the outputs of requests without drafts, each computed alone."""
    with random_members([]) as ensemble:
        yield functools.cache(lambda *asked: [ensemble.generate(prompt, **dict(asked)) for prompt in PROMPTS])


@pytest.mark.parametrize(
    "asked",
    [
        {"combine": "safe", "gate": "m1"},
        {"combine": "safe", "threshold": 0.3},
        {"combine": "core", "temperature": 1.0},
        {"gate_rule": "consensus", "threshold": 0.4, "weights": (5.0, 1.0, 1.0)},
    ],
    ids=str,
)
def test_drafts_and_batches_leave_the_text_as_it_is(undrafted, asked):
    asked = {"max_tokens": 16, "seed": 5, **asked}
    plain = undrafted(*asked.items())
    with random_members(["lookup", "ahead"]) as ensemble:
        alone = [ensemble.generate(prompt, **asked) for prompt in PROMPTS]
        for outputs in (alone, ensemble.generate_batch(PROMPTS, **asked)):
            assert [o.tokens for o in outputs] == [o.tokens for o in plain]
            assert [o.stats.steps_ensembled for o in outputs] == [o.stats.steps_ensembled for o in plain]
        assert sum(output.stats.drafted for output in alone) > 0


@pytest.mark.shared
def test_safe_equals_the_reference_where_verifiers_cut_differently_and_elsewhere(stories, monkeypatch):
    """Also if all of them always cut differently: then the text is that of the gate alone."""
    outcomes, gate = [], stories.names[1]

    def recorded(place, texts):
        found = verified(place, texts)
        outcomes.append(found.groups[0].verification)
        return found

    def never(place, texts):
        group = verified(place, texts).groups[0]
        return replace(place, groups=(replace(group, verification=replace(group.verification, aligned=False)),))

    monkeypatch.setattr(step, "verified", recorded)
    asked = {"gate": gate, "combine": "safe"}
    prompt = "Tom and Anna went to the park. They saw a"
    output = assert_equal(stories, [reference.PlainMember(*pair(folder)) for folder in STORIES], prompt, 40, **asked)
    assert {outcome.aligned for outcome in outcomes} == {True, False}
    assert {outcome.gate for outcome in outcomes} == {1}
    monkeypatch.setattr(step, "verified", never)
    alone = stories.generate(prompt, max_tokens=40, gate=gate, threshold=0.0)
    assert stories.generate(prompt, max_tokens=40, **asked).tokens == alone.tokens != output.tokens


def some_outputs(ensemble, **asked):
    return [ensemble.generate(prompt, max_tokens=24, **asked) for prompt in [*PROMPTS, "The bridge stands in"]]


@pytest.mark.parametrize("commit", ["canonical", "context-free"])
def test_consensus_saves_steps_and_changes_no_token(commit):
    with shared_ensemble(EMBEDDED, commit=commit) as ensemble:
        for weights in ((1.0, 1.0, 4.0), (6.0, 2.0, 1.0)):
            every = some_outputs(ensemble, weights=weights)
            saving = some_outputs(ensemble, weights=weights, gate_rule="consensus", threshold=1.0)
            assert [output.tokens for output in saving] == [output.tokens for output in every]
            steps = sum(output.stats.steps for output in every)
            assert sum(output.stats.steps_ensembled for output in saving) < 0.7 * steps


def test_a_gate_with_half_of_the_weights_is_never_certain(ensemble):
    for weights in ((1.0, 1.0, 2.0), (1.0, 1.0, 1.0)):
        output = ensemble.generate(QUESTION, max_tokens=16, weights=weights, gate_rule="consensus", threshold=1.0)
        assert output.stats.share_ensembled == 1


def test_consensus_is_certain_under_a_grammar_too(ensemble):
    """The gate's mass on allowed tokens may be small, and the others' complete."""
    asked = {"weights": (1.0, 1.0, 6.0), "grammar": Grammar.regex("[a-z ]{24}"), "max_tokens": 24}
    for prompt in PROMPTS:
        saving = ensemble.generate(prompt, gate_rule="consensus", threshold=1.0, **asked)
        assert saving.tokens == ensemble.generate(prompt, threshold=None, **asked).tokens


def test_the_share_of_the_gate_grows_while_another_member_is_absent():
    """What the gate computed before another member failed was measured with a smaller share, and is not used."""
    asked = {"max_tokens": 16, "threshold": 0.9, "gate_rule": "consensus", "gate": "m0", "token_stats": True}
    with faulty_ensemble(on_member_failure="drop") as (one, executor):
        fail_at(one, executor, "m2", 0)
        output = one.generate(QUESTION, weights=(3.0, 2.0, 2.0), **asked)
        healed(executor)
        without = one.generate(QUESTION, weights=(3.0, 2.0, 0.0), **asked)
    assert [dropped.member for dropped in output.stats.dropped] == ["m2"]
    assert output.tokens == without.tokens
    decided = [len(token.members) for token in output.token_stats]
    assert decided == [len(token.members) for token in without.token_stats]
    assert decided[0] == 1


def test_rules_that_do_not_fit_are_refused_for_a_call(ensemble):
    with shared_ensemble(EMBEDDED, gate_rule="consensus") as cautious:
        with pytest.raises(
            RequestError, match="gate_rule='consensus' tells what is certain in combine='arithmetic' alone"
        ):
            cautious.generate(QUESTION, combine="max", max_tokens=1)
        assert cautious.generate(QUESTION, combine="max", gate_rule="margin", max_tokens=1).tokens
    output = ensemble.generate(QUESTION, combine="power:0.5", max_tokens=2)
    assert output.stats.settings.combine == "power:0.5"
