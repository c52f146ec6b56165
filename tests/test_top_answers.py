"""Answers with the most probable tokens: what is fetched, what fails, and what is lost meanwhile."""

from __future__ import annotations

import queue
from collections import Counter

import pytest
import torch
from compact import PROMPTS, REGEX, Watched, assert_same, compactly, counts_of, executor_of, random_members

from gac_core import GrammarError, InvalidLogitsError, MemberError
from gac_core.decoding.voice_distributions import TopDistribution, VoiceDistributions
from gac_core.executor import evaluator
from gac_core.executor.messages import TopDistributions


def test_a_step_fetches_once_per_member_for_all_requests():
    with compactly(1), random_members(drafts=[]) as ensemble:
        watched = Watched(executor_of(ensemble))
        ensemble.generate_batch(PROMPTS, max_tokens=10)
        assert len(watched.fetches) <= 2 * len(watched.forwards)
        several = [wanted for wanted in watched.fetches if any(len(own) > 1 for own in wanted.values())]
        assert len(several) > 5
        # Values of some tokens, and whole distributions where those do not suffice.
        fetched = [each for wanted in watched.fetches for own in wanted.values() for each in own]
        assert {each.ids is None for each in fetched} == {True, False}
        assert max(len(each.ids) for each in fetched if each.ids is not None) <= 3


def test_a_fetch_that_fails_is_the_members_failure_for_that_request():
    with compactly(1), random_members(drafts=[]) as ensemble:
        wanted = ensemble.generate_batch(PROMPTS, max_tokens=10)
        failing = []
        Watched(executor_of(ensemble), failing)
        request, _ = ensemble._input_processor.request(PROMPTS[0], None, {"max_tokens": 10})
        failing.append(request.request_id)
        events: queue.SimpleQueue = queue.SimpleQueue()
        ensemble._session.submit(request, events.put)
        together = ensemble.generate_batch(PROMPTS, max_tokens=10)
        assert [output.tokens for output in together] == [output.tokens for output in wanted]
        while not isinstance(error := events.get(timeout=60), Exception):
            assert error.output is None
    assert isinstance(error, MemberError)
    assert "failed: fetching probabilities: ConnectionError: gone" in str(error)


def test_logits_that_are_no_numbers_name_the_member():
    with compactly(), random_members(drafts=[]) as ensemble:
        head = ensemble._members[1]._runner._model.get_output_embeddings()
        with torch.no_grad():
            head.weight[5] = float("nan")
        with pytest.raises(InvalidLogitsError, match="'m1'"):
            ensemble.generate(PROMPTS[1], max_tokens=3)


def test_a_grammar_whose_tokens_have_no_probability_says_so(monkeypatch):
    with compactly(), random_members(drafts=[]) as ensemble:
        align = evaluator._align
        monkeypatch.setattr(evaluator, "_align", lambda *given: [(each, probs * 0) for each, probs in align(*given)])
        with pytest.raises(GrammarError, match="has any probability for members m0, m1, m2"):
            ensemble.generate(PROMPTS[1], max_tokens=3, grammar=REGEX)


def test_a_member_that_still_reads_does_not_cost_the_others_their_distributions():
    """Voices that are ready wait with their most probable tokens for one that reads its prompt in parts."""
    prompt = "one two three " * 60
    with random_members(drafts=[], contexts=[None] * 3) as full:
        wanted = full.generate(prompt[:240], max_tokens=8)
    with compactly(1), random_members(drafts=[]) as short:
        slow = short._members[2]
        slow.options = slow.options.__class__(**{**vars(slow.options), "prefill_tokens": 16})
        watched = Watched(executor_of(short))
        assert_same(short.generate(prompt[:240], max_tokens=8), wanted)
        assert sum(set(asks) == {slow.member_id} for asks in watched.forwards) >= 2
        assert counts_of(short)["values"] + counts_of(short)["whole"] > 0


def test_members_that_lost_their_caches_read_their_texts_again():
    """As after a restart: the KV cache and what was kept are gone, and the texts are the same."""
    with compactly(2), random_members() as ensemble:
        wanted = ensemble.generate_batch(PROMPTS, max_tokens=16)
        executor, lost = executor_of(ensemble), Counter()

        def refresh():
            member = ensemble._members[lost.total() % 3]
            for request in ensemble._session.worker._engine._scheduler.all():
                executor.release(request.request_id, clear=True, member_id=member.member_id)
            lost[member.member_id] += 1

        executor.refresh, executor.generation = refresh, lambda member_id: lost[member_id]
        together = ensemble.generate_batch(PROMPTS, max_tokens=16)
        assert [output.tokens for output in together] == [output.tokens for output in wanted]
        for output in together:
            for member in output.stats.members.values():
                assert member.tokens > 4 * member.prompt_tokens


def test_a_mask_is_not_computed_after_its_step():
    """A member that returns late, after its deadline, must not touch the grammar's state."""
    with random_members() as ensemble:
        watched = Watched(executor_of(ensemble))
        ensemble.generate(PROMPTS[1], max_tokens=3, grammar=REGEX)
        masks = [ask.mask for asks in watched.forwards for own in asks.values() for ask in own]
        assert len(masks) > 3
        for mask in masks:
            with pytest.raises(RuntimeError, match="is over"):
                mask()


def test_voices_have_the_most_probable_tokens_of_each_position():
    ids, probs = torch.tensor([[1, 2], [4, 2]]), torch.tensor([[1.0, 0.0], [0.5, 0.25]])
    both = TopDistributions(ids, probs, torch.ones(2), torch.tensor([0.0, 0.125]))
    first, second = (VoiceDistributions(both.rows(slice(i, i + 1)), (6 + i,), first=i) for i in range(2))
    voice = first.extended(second)
    assert voice.at(1) == TopDistribution((4, 2), (0.5, 0.25), 1.0, 0.125, end=7)
    assert (voice.at(0), voice.ends, voice.next_position) == (first.at(0), (6, 7), 2)
    assert (voice.pending().ends, voice.pending().at(0), second.pending()) == ((6,), first.at(0), None)
