"""What runs beside a model: from logits to distributions over the union, complete or their most probable tokens."""

from __future__ import annotations

import pickle
from collections import Counter

import pytest
import torch
from architectures import random_model
from chunks import IDS, ask_of, member_of
from conftest import EMBEDDED, tokenizer_of

from gac_core.combination import GATES
from gac_core.executor import evaluator as evaluators
from gac_core.executor.evaluator import Evaluator, penalise_repetition, top_distributions
from gac_core.executor.local import LocalExecutor
from gac_core.executor.messages import Fetch, TopDistributions
from gac_core.model.costs import ForwardTimes
from gac_core.model.member import Member
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import Alignment, UnionVocabulary

ENDS = (20, 22, 24)


@pytest.fixture
def member(tokenizer):
    return member_of("llama", tokenizer, deterministic=True)


def plain(member, ends, alignment, penalty=1.0):
    """The distributions at some ends by one forward of the model over the whole text."""
    with torch.no_grad():
        logits = member._runner._model(torch.tensor([IDS]), use_cache=False).logits[0]
    rows = [penalise_repetition(logits[end - 1], torch.tensor(sorted(set(IDS[:end]))), penalty) for end in ends]
    return alignment.align(torch.stack(rows))


def allowed(size):
    """A grammar's masks at three ends: half of the tokens, another half, and one token."""
    generator = torch.Generator().manual_seed(1)
    masks = torch.rand((3, size), generator=generator) < 0.5
    masks[2] = torch.arange(size) == 7
    return masks


@pytest.mark.parametrize("penalty", [1.0, 1.7])
def test_answers_are_the_aligned_distributions_at_the_ends(member, penalty):
    ask = ask_of(member, ends=ENDS, repetition_penalty=penalty)
    (answer,) = Evaluator(member).forward([ask])
    torch.testing.assert_close(answer.result, plain(member, ENDS, ask.alignment, penalty), atol=1e-5, rtol=1e-4)
    assert (answer.read, answer.computed, answer.certainty) == (len(IDS), len(IDS), None)


def test_the_text_before_a_chunk_counts_for_the_penalty(member):
    whole = ask_of(member, ends=ENDS, repetition_penalty=1.7)
    evaluator = Evaluator(member)
    evaluator.forward([ask_of(member, "later", ids=IDS[:12])])
    part = ask_of(member, "later", start=12, ends=ENDS, repetition_penalty=1.7, text_before=tuple(IDS[:12]))
    (one,), (other,) = evaluator.forward([whole]), evaluator.forward([part])
    torch.testing.assert_close(one.result, other.result, atol=1e-5, rtol=1e-4)
    assert other.computed == len(IDS) - 12


@pytest.mark.parametrize("rule", list(GATES))
def test_masks_remove_mass_and_certainty_is_that_of_what_is_left(member, rule):
    ask = ask_of(member, ends=ENDS)
    masks = allowed(ask.alignment.table.size)
    asked = {"alignment": ask.alignment, "ends": ENDS}
    (answer,) = Evaluator(member).forward([ask_of(member, mask=lambda: masks, gate_rule=GATES[rule], **asked)])
    want = plain(member, ENDS, ask.alignment) * masks
    torch.testing.assert_close(answer.result, want, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(
        answer.certainty, GATES[rule](want / want.sum(-1, keepdim=True), 1.0), atol=1e-4, rtol=1e-3
    )
    assert float(answer.certainty[2]) == pytest.approx(1.0)


def test_under_a_mask_the_share_is_the_least_that_it_can_be(member):
    """The other members may have all of their mass on allowed tokens."""
    ask = ask_of(member, ends=ENDS)
    masks = allowed(ask.alignment.table.size)
    asked = {"alignment": ask.alignment, "ends": ENDS, "gate_rule": lambda probs, share: share + 0 * probs.sum(-1)}
    plain_ask, masked = (
        ask_of(member, "a", share=0.7, **asked),
        ask_of(member, "b", share=0.7, mask=lambda: masks, **asked),
    )
    unmasked, least = Evaluator(member).forward([plain_ask, masked])
    torch.testing.assert_close(unmasked.certainty, torch.full((len(ENDS),), 0.7))
    mass = 0.7 * least.result.sum(-1)
    torch.testing.assert_close(least.certainty, mass / (mass + 0.3))


def test_what_a_request_asked_for_fails_that_request_alone(member):
    def broken(*given):
        raise ValueError("no")

    asks = [ask_of(member, "a", mask=broken), ask_of(member, "b"), ask_of(member, "c", gate_rule=broken)]
    first, second, third = Evaluator(member).forward(asks)
    assert isinstance(second.result, torch.Tensor)
    for failed, stage in ((first, "masking"), (third, "measuring")):
        assert isinstance(failed.result.error, ValueError)
        assert failed.result.stage.startswith(stage)
        assert not failed.result.of_member


# ---- the most probable tokens


def check_top(top: TopDistributions, full: torch.Tensor, k: int):
    """They are the k largest of complete distributions, in order, and the next one bounds the rest."""
    order = full.sort(dim=-1, descending=True, stable=True)
    count = min(k, full.shape[1])
    assert torch.equal(top.probs, order.values[:, :count])
    assert torch.equal(full.gather(1, top.ids), top.probs)
    assert all(len(set(row)) == count for row in top.ids.tolist())
    # Among those that equal the last one any may be chosen, but the first is the first of all.
    assert torch.equal(top.ids[:, 0], order.indices[:, 0])
    for ids, probs in zip(top.ids.tolist(), top.probs.tolist(), strict=True):
        assert list(zip(ids, probs, strict=True)) == sorted(
            zip(ids, probs, strict=True), key=lambda each: (-each[1], each[0])
        )
    outside = full.scatter(1, top.ids, 0.0).amax(-1)
    assert torch.equal(top.rest, outside)


@pytest.mark.parametrize("k", [1, 3, 20, 1000])
@pytest.mark.parametrize("levels", [2, 5, 1000])
def test_the_most_probable_tokens_are_those_of_a_stable_sort(k, levels):
    """Also where many are equal, or all."""
    generator = torch.Generator().manual_seed(k * levels)
    rough = torch.randint(levels, (200, 60), generator=generator).float()
    rough[0] = 1.0
    rough[1] = torch.arange(60) == 59
    full = rough / rough.sum(-1, keepdim=True).clamp_min(1)
    top = top_distributions(full, k)
    check_top(top, full, k)
    assert torch.equal(top.totals, torch.ones(200))
    assert float(top.rest[1]) == 0
    torch.testing.assert_close(top_distributions(full / 2, k, masked=True).totals, full.sum(-1) / 2)


@pytest.mark.parametrize("masked", [False, True])
def test_short_answers_are_those_of_complete_ones_and_the_rest_can_be_fetched(member, masked):
    asked = {"ends": ENDS, "gate_rule": GATES["margin"], "alignment": ask_of(member).alignment}
    masks = allowed(asked["alignment"].table.size)
    asked |= {"mask": lambda: masks} if masked else {}
    compact = Evaluator(member, compact=True)
    (full,) = Evaluator(member).forward([ask_of(member, **asked)])
    (same,) = compact.forward([ask_of(member, "s", **asked)])
    (short,) = compact.forward([ask_of(member, "t", form="top", **asked)])
    assert torch.equal(same.result, full.result)
    check_top(short.result, full.result, evaluators.TOP_K)
    assert torch.equal(short.certainty, full.certainty)
    torch.testing.assert_close(short.result.totals, full.result.sum(-1))
    ids = torch.tensor([5, 0, 7])
    whole, some = compact.fetch([Fetch("t", 22), Fetch("t", 24, ids)])
    assert torch.equal(whole, full.result[1])
    assert torch.equal(some, full.result[2, ids])


def test_distributions_are_kept_until_the_text_moves_on(member):
    compact = Evaluator(member, compact=True)

    def kept(request_id="r"):
        found = compact.fetch([Fetch(request_id, end) for end in range(30)])
        return [end for end, each in enumerate(found) if isinstance(each, torch.Tensor)]

    def ask(ends, fetch_from, request_id="r"):
        compact.forward([ask_of(member, request_id, IDS[: ends[-1]], ends=ends, form="top", fetch_from=fetch_from)])
        return kept(request_id)

    assert ask((10,), 10) == [10]
    # A draft grows within a step; the next step drops what came before its text, and what a wrong draft left.
    assert ask((11,), 10) == [10, 11]
    assert ask((12, 13), 10) == [10, 11, 12, 13]
    assert ask((12,), 12) == [12]
    assert ask((11,), 11, "s") == [11]
    assert ask((13,), 13) == [13]
    compact.release("r")
    assert (kept(), kept("s")) == ([], [11])
    (failed,) = compact.fetch([Fetch("r", 13)])
    assert isinstance(failed.error, KeyError)
    assert (failed.stage, failed.of_member) == ("fetching probabilities after 13 tokens", True)


def test_kept_distributions_do_not_keep_those_of_the_batch(member):
    compact = Evaluator(member, compact=True)
    compact.forward([ask_of(member, str(index), form="top") for index in range(4)])
    rows = [compact._kept[str(index)][len(IDS)] for index in range(4)]
    assert {row.untyped_storage().nbytes() for row in rows} == {rows[0].nbytes}


# ---- the tables and times that go to other processes


def test_an_alignment_is_that_of_its_table():
    members = [MemberTokenizer(tokenizer_of(folder), folder) for folder in EMBEDDED[:2]]
    union = UnionVocabulary(members)
    alignment = Alignment(union, members[0])
    copy = Alignment.of_table(pickle.loads(pickle.dumps(alignment.table)))
    logits = torch.randn(3, len(alignment.table.columns))
    assert torch.equal(copy.align(logits), alignment.align(logits))
    mass = alignment.align(torch.zeros_like(logits[:1]))[0]
    assert [copy.has(index) for index in range(len(union))] == (mass > 0).tolist()
    assert 0 < int((mass > 0).sum()) < len(union)
    others = [union.table(members[1]), UnionVocabulary(members[:1]).table(members[0])]
    assert copy.table.key == alignment.table.key
    assert alignment.table.key not in [each.key for each in others]


def test_times_are_restored_from_their_snapshot():
    times, copy = (ForwardTimes(torch.device("cpu"), 0.5) for _ in range(2))
    for seconds in (9.0, 1.0, 2.0, 3.0):
        times.note(1, seconds)
    times.note_long(10, 5.0)
    copy.note(1, 100.0)
    copy.restore(pickle.loads(pickle.dumps(times.snapshot())))
    assert (copy.total, copy.seconds(1), copy.seconds(3)) == (times.total, times.seconds(1), times.seconds(3))
    assert copy.tokens_within(5.0) == times.tokens_within(5.0) == 10


# ---- what an executor does with evaluators


def test_a_release_may_be_for_one_member():
    tokenizer = tokenizer_of(EMBEDDED[0])
    one, other = (Member.from_model(random_model("llama", tokenizer, seed), tokenizer, "m") for seed in range(2))
    executor = LocalExecutor([one, other], compact=True)
    executor.forward({each.member_id: [ask_of(each, form="top")] for each in (one, other)})
    executor.release("r", member_id=other.member_id)
    assert [each._slots.num_running for each in (one, other)] == [1, 0]
    fetched = executor.fetch({each.member_id: [Fetch("r", len(IDS))] for each in (one, other)})
    kinds = Counter(type(found).__name__ for own in fetched.values() for found in own)
    assert kinds == {"Tensor": 1, "Failure": 1}
    executor.close()
