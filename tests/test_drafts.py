"""Drafts change the cost, never the text."""

from __future__ import annotations

import math

import pytest
from architectures import ARCHITECTURES, random_model
from conftest import EMBEDDED, QUESTION, ensemble_of
from transformers import AutoTokenizer

from gac_core import ConfigError, RequestError
from gac_core.draft import PromptLookup, Tally, expected, lookup_length, run_ahead_length
from gac_core.tokenizer import MemberTokenizer

PROMPTS = [QUESTION, "The bridge stands in", "one two three one two three one two", "1874 crowns, 14:15", "é ü 😀 é ü"]


@pytest.fixture(scope="module")
def tokenizers():
    return [AutoTokenizer.from_pretrained(folder) for folder in EMBEDDED]


def random_members(tokenizers, **settings):
    """Random members with different tokenizers; sharp ones, so that their texts repeat and differ."""
    names = ["llama", "gpt2", "qwen2"]
    models = [(random_model(name, t, seed), t) for seed, (name, t) in enumerate(zip(names, tokenizers, strict=True))]
    return ensemble_of(models, **settings)


def eager(ensemble):
    """Lets an ensemble draft at every chance, worth it or not."""
    decoder = ensemble._worker._engine._decoder
    decoder._drafting.slope = 0.0
    if decoder._drafting.lookup is not None:
        decoder._drafting.lookup.ENDS = (4, 2, 1)
    decoder._drafting.costs = [1e-9, *[1.0] * (len(ensemble.names) - 1)]
    return ensemble


@pytest.mark.parametrize("drafts", [["lookup"], ["ahead"], ["lookup", "ahead"]])
@pytest.mark.parametrize("threshold", [None, 0.2, 0.6])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_drafted_text_is_the_plain_text(tokenizers, drafts, threshold, temperature):
    asked = {"max_tokens": 40, "threshold": threshold, "temperature": temperature, "seed": 5}
    with random_members(tokenizers, drafts=drafts) as ensemble:
        eager(ensemble)
        plain = [ensemble.generate(prompt, drafts=False, **asked) for prompt in PROMPTS]
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
    from gac_core import Ensemble

    with Ensemble.load(EMBEDDED, dtype="float32", drafts=drafts) as drafting:
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
        for prompt in PROMPTS:
            plain = one.generate(prompt, max_tokens=60, drafts=False)
            assert one.generate(prompt, max_tokens=60).tokens == plain.tokens


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


def test_samples_with_drafts_follow_the_distribution_of_a_plain_mixture(tokenizers):
    """Frequencies of sampled texts against the product of the members' averaged probabilities."""
    with random_members(tokenizers[:2] + tokenizers[:1], drafts=["ahead"]) as ensemble:
        eager(ensemble)
        asked = {"max_tokens": 3, "temperature": 0.6, "top_k": 3, "logprobs": 0}
        counts: dict[tuple[bytes, ...], int] = {}
        used = 0
        for seed in range(300):
            output = ensemble.generate("Who", **asked, seed=seed)
            counts[output.tokens] = counts.get(output.tokens, 0) + 1
            used += output.stats.accepted
        assert used > 50
        plain: dict[tuple[bytes, ...], int] = {}
        for seed in range(1000, 1300):
            output = ensemble.generate("Who", **asked, seed=seed, drafts=False)
            plain[output.tokens] = plain.get(output.tokens, 0) + 1
        distance = sum(abs(counts.get(k, 0) - plain.get(k, 0)) for k in counts.keys() | plain.keys()) / 600
        # Two samples of 300 from one distribution over some dozen texts differ by about sqrt(k / (pi n)).
        assert distance < 2.5 * math.sqrt(len(counts.keys() | plain.keys()) / (math.pi * 300))


def test_thresholded_drafts_let_the_others_rest(ensemble):
    """Members other than the gate make no forward at all where the gate is always sure."""
    plain = ensemble.generate(QUESTION, threshold=0.0, drafts=False)
    output = ensemble.generate(QUESTION, threshold=0.0)
    assert output.tokens == plain.tokens
    assert output.stats.drafted > 0
    assert list(output.stats.members) == ["ash"]
    assert output.stats.members["ash"].forwards < output.stats.steps


def test_a_lookup_finds_what_followed(tokenizers):
    members = [MemberTokenizer(t, str(i)) for i, t in enumerate(tokenizers)]
    lookup = PromptLookup(members, [1.0, 1.0, 1.0])
    voters = range(len(members))
    text = b"The Torno Bridge stands in Halkus. It was built in 1874. The Torno Bridge stands"
    tokens = lookup.propose(text, 10, 7, voters)
    assert b" in Halkus. It was built".startswith(b"".join(tokens))
    assert tokens
    assert lookup.propose(text, 0, 7, voters) == []
    assert lookup.propose(b"nothing here comes twice", 10, 7, voters) == []
    assert lookup.propose(b"", 0, 7, voters) == []
    # What is found may begin in the middle of a character.
    assert lookup.propose("eine große Brücke, eine große Br".encode() + b"\xc3", 10, 7, voters) == []


def test_draft_lengths_follow_their_worth():
    assert expected(0.5, 1) == 1.5
    assert lookup_length(0.95, 1, 0.05, 7) > lookup_length(0.5, 1, 0.05, 7) >= 1
    assert lookup_length(0.02, 1, 0.1, 7) == 0
    assert lookup_length(0.9, 16, 0.1, 7) < lookup_length(0.9, 1, 0.1, 7)
    assert run_ahead_length(0.9, 1, 1, 1.0, 1, 0.1, 8) > 1
    assert run_ahead_length(0.3, 1, 1, 1.0, 1, 0.1, 8) == 1
    # A gate that hardly needs the others gains nothing by running ahead of them.
    assert run_ahead_length(0.9, 1, 1, 0.05, 1, 0.1, 8) == 1
    # A small gate before large members runs further.
    assert run_ahead_length(0.9, 0.1, 1, 1.0, 1, 0.01, 8) > run_ahead_length(0.9, 1, 1, 1.0, 1, 0.01, 8)
    tally = Tally(4, 1)
    rates = []
    for drafted, accepted in ((5, 0), (5, 0), (5, 5), (0, 0)):
        tally.note(drafted, accepted)
        rates.append(tally.rate)
    assert rates[1] < rates[0] < 0.8
    assert rates[2] > rates[1]
    assert rates[3] == rates[2]
    before = tally.rate
    tally.rest()
    assert tally.rate > before


def test_wrong_settings_are_refused(ensemble, tokenizers):
    with pytest.raises(RequestError, match="drafts"):
        ensemble.generate("Who", drafts="lookup")
    with pytest.raises(ConfigError, match="drafts must be"):
        random_members(tokenizers, drafts=["guess"])
