"""Presence and frequency penalty and logit bias: the engine equals the float64 reference, and OpenAI's formula."""

from __future__ import annotations

import math
from collections import Counter

import pytest
import reference
import torch
from architectures import random_model
from compact import assert_same, compactly, counts_of, eager, random_members
from conftest import EMBEDDED, copied_pair, ensemble_of, shared_ensemble, start, tokenizer_of
from holding import held

from gac_core import Grammar, RequestError, SamplingParams, StepDone, fold
from gac_core.combination import COMBINERS, GATES
from gac_core.decoding.logit_adjustment import LogitAdjustment
from gac_core.decoding.sampler import Sampler
from gac_core.executor.logit_offsets import scale_probs

PROMPT = "one two three one two three one two"
STEPS = 16
PENALTIES = {"presence_penalty": 0.8, "frequency_penalty": 0.5}
# Tokens of several members that come again and again once they are favoured.
FAVOURED = {b" the": 5.0, b"e": 4.5, b" of": 4.0, b"n": 3.5}
BANNED = {b" the": -100.0, b"s": -3.0}
REGEX = Grammar.regex("[a-z ]{1,60}")
CASES = [
    {"bias": FAVOURED},
    {"bias": FAVOURED, **PENALTIES},
    {"bias": FAVOURED, "frequency_penalty": -0.7},
    {"bias": BANNED, "presence_penalty": 2.0, "frequency_penalty": -0.4},
    {"bias": FAVOURED, "grammar": REGEX, **PENALTIES},
    *({"bias": FAVOURED, "combine": rule, "weights": (1.0, 2.0, 5.0), **PENALTIES} for rule in COMBINERS),
]


@pytest.fixture(scope="module")
def members():
    """Three random members, which draft at every chance."""
    with random_members() as ensemble:
        yield eager(ensemble)


@pytest.fixture(scope="module")
def plain():
    """The same members as the reference reads them."""
    tokenizers = [tokenizer_of(folder) for folder in EMBEDDED]
    named = enumerate(zip(("llama", "gpt2", "qwen2"), tokenizers, strict=True))
    return [reference.PlainMember(random_model(name, each, seed), each) for seed, (name, each) in named]


def generate(ensemble, bias=None, steps=STEPS, **asked):
    """The engine's answer to a request in the reference's terms."""
    return ensemble.generate(PROMPT, max_tokens=steps, logit_bias=bias, **asked)


def wanted(members, plain, trace=None, **asked):
    """The reference's answer, and whether it ended."""
    grammar = asked.pop("grammar", None)
    gate = members.names.index(asked.pop("gate", members.gate))
    oracle = None if grammar is None else reference.Oracle(grammar)
    asked = {"steps": STEPS, "gate": gate, "grammar": oracle, "trace": trace, **asked}
    return reference.generate(plain, PROMPT, **asked)


@pytest.fixture(scope="module")
def drafted(members):
    """The answers to all cases, with drafts."""
    return [generate(members, **asked) for asked in CASES]


@pytest.mark.parametrize("case", range(len(CASES)))
def test_greedy_texts_equal_the_reference(members, plain, drafted, case):
    tokens, _ = wanted(members, plain, **CASES[case])
    assert list(drafted[case].tokens) == tokens
    assert list(generate(members, drafts=False, **CASES[case]).tokens) == tokens


def test_the_cases_matter_and_are_drafted(drafted):
    assert len({output.tokens for output in drafted}) > len(CASES) // 2
    assert max(Counter(drafted[0].tokens).values()) > 2
    assert sum(output.stats.accepted for output in drafted) > 20


@pytest.mark.parametrize("gate_rule", GATES)
def test_gates_measure_the_renormalised_products(members, plain, gate_rule):
    asked = {"bias": FAVOURED, "gate_rule": gate_rule, "gate": "m1", "weights": (1.0, 3.0, 1.0), **PENALTIES}
    trace: list = []
    wanted(members, plain, trace, **asked)
    certainty = reference.find_rule(reference.GATES, gate_rule)
    sure = sorted(certainty(torch.from_numpy(parts[1]), 0.6) for parts, _ in trace)
    middle = len(sure) // 2
    asked["threshold"] = (sure[middle - 1] + sure[middle]) / 2
    for drafts in (True, False):
        output = generate(members, drafts=drafts, **asked)
        assert list(output.tokens) == wanted(members, plain, **asked)[0]
        assert 0 < output.stats.share_ensembled < 1


def test_samples_and_log_probabilities_are_those_of_the_reference(members, plain):
    asked = {"bias": FAVOURED, **PENALTIES}
    params = SamplingParams(temperature=1.2, top_k=40, top_p=0.95, min_p=0.01, seed=5, max_tokens=STEPS)
    outputs = [
        members.generate(PROMPT, params, logit_bias=FAVOURED, logprobs=3, drafts=drafts, **PENALTIES)
        for drafts in (True, False)
    ]
    assert outputs[0].tokens == outputs[1].tokens
    trace: list = []
    wanted(members, plain, trace, given=list(outputs[0].tokens), **asked)
    keys = members._union.keys(torch.device("cpu"))
    for ahead, ((parts, pick), entry) in enumerate(zip(trace, outputs[0].logprobs, strict=True)):
        mixed = sum(torch.from_numpy(part) for part in parts)
        mixed = mixed / mixed.sum()
        assert int(Sampler(params, 5).pick(mixed, keys, ahead)) == pick
        assert entry.logprob == pytest.approx(math.log(mixed[pick]), abs=1e-4)
        best = mixed.topk(3)
        assert [logprob for _, logprob in entry.top] == pytest.approx(best.values.log().tolist(), abs=1e-4)


def test_one_member_gives_openais_formula_on_its_logits():
    tokenizer = tokenizer_of(EMBEDDED[0])
    model = random_model("llama", tokenizer)
    start = tokenizer.encode(PROMPT)
    with ensemble_of([(model, tokenizer)]) as one:
        favoured = {one.encode(" the")[0]: 6.0, one.encode(" of")[0]: 5.5}
        output = one.generate(PROMPT, max_tokens=24, logit_bias=favoured, logprobs=0, **PENALTIES)
        member = one._members[0].tokenizer
        answer: list[int] = []
        with torch.inference_mode():
            for data, entry in zip(output.tokens, output.logprobs, strict=True):
                logits = model(torch.tensor([start + answer])).logits[0, -1].float()
                logits[
                    [i for i, each in enumerate(member.token_bytes) if each is None and i not in member.end_ids]
                ] = -math.inf
                for i, added in favoured.items():
                    logits[i] += added
                for i, count in Counter(answer).items():
                    logits[i] -= PENALTIES["presence_penalty"] + count * PENALTIES["frequency_penalty"]
                best = int(logits.argmax())
                assert member.token_bytes[best] == data
                assert entry.logprob == pytest.approx(float(logits.log_softmax(-1)[best]), abs=1e-4)
                answer.append(best)
    assert max(Counter(answer).values()) > 1


def test_answers_from_the_most_probable_tokens_are_the_same(members, drafted):
    gated = [{"bias": FAVOURED, "threshold": 0.3, "gate_rule": rule, **PENALTIES} for rule in GATES]
    pairs = [(asked, full) for asked, full in zip(CASES, drafted, strict=True) if "combine" not in asked]
    with compactly(3), random_members() as short:
        eager(short)
        for asked, full in [*pairs, *((asked, generate(members, **asked)) for asked in gated)]:
            assert_same(generate(short, **asked), full)
        assert min(counts_of(short).values()) > 0


def test_requests_with_different_penalties_share_a_forward(members):
    asked = [{}, {"logit_bias": FAVOURED}, {"logit_bias": FAVOURED, **PENALTIES}, PENALTIES]
    alone = [members.generate(PROMPT, max_tokens=STEPS, drafts=False, **each).tokens for each in asked]
    sizes: list[int] = []
    remove = members.add_listener(lambda event: sizes.append(event.requests) if isinstance(event, StepDone) else None)
    with held(members) as waiting:
        streams = [start(members, PROMPT, max_tokens=STEPS, drafts=False, **each) for each in asked]
        assert waiting.wait(10)
    assert [fold(stream).tokens for stream in streams] == alone
    remove()
    assert sizes.count(len(asked)) > STEPS // 2


def test_the_weight_law_and_the_copies_law_hold(members):
    asked = {"bias": FAVOURED, **PENALTIES}
    alone = generate(members, weights=[0, 1, 0], **asked).tokens
    assert generate(members, weights=[1e-9, 1, 1e-9], **asked).tokens == alone
    tokenizer = tokenizer_of(EMBEDDED[1])
    pair = (random_model("gpt2", tokenizer, 1), tokenizer)
    with ensemble_of([pair, pair]) as copies, ensemble_of([pair]) as one:
        assert generate(copies, **asked).tokens == generate(one, **asked).tokens


def test_a_deterministic_ensemble_applies_them(plain_members):
    asked = {"bias": FAVOURED, **PENALTIES}
    with shared_ensemble(EMBEDDED, deterministic=True) as fixed:
        tokens, _ = wanted(fixed, plain_members, **asked)
        assert list(generate(fixed, **asked).tokens) == tokens != wanted(fixed, plain_members)[0]


def test_100_selects_and_minus_100_bans(members):
    usual = generate(members).tokens
    assert generate(members, bias={b" of": 100}).tokens == (b" of",) * STEPS
    banned = generate(members, bias=dict.fromkeys(usual, -100)).tokens
    assert not set(banned) & set(usual)
    end = next(iter(members._members[0].tokenizer.end_ids))
    assert members.generate(PROMPT, max_tokens=5, gate="m0", logit_bias={end: 100}).tokens == ()


@pytest.mark.parametrize("threshold", [None, 0.3])
@pytest.mark.parametrize(
    "asked",
    [
        {"bias": {b" of": 100.0, b"1": 2.0}, "grammar": Grammar.regex("[0-9]{4}")},
        {"bias": {str(digit).encode(): -100.0 for digit in range(10)}, "grammar": Grammar.regex("[0-9]{4}")},
        {
            "bias": {b"a": -60.0, b"b": -60.0},
            "frequency_penalty": 2.0,
            "grammar": Grammar.regex("[ab]{24}"),
            "steps": 24,
        },
    ],
)
def test_only_tokens_that_the_grammar_allows_count(members, plain, asked, threshold):
    asked = {**asked, "threshold": threshold}
    assert list(generate(members, **asked).tokens) == wanted(members, plain, **asked)[0]


def test_tokens_that_no_participant_has_change_nothing(members):
    known = set(members._members[0].tokenizer.token_bytes)
    own = next(data for data in members._union.tokens if data not in known)
    alone = {"threshold": 0.0, "gate": "m0", "frequency_penalty": 0.5}
    assert generate(members, bias={own: 100.0}, **alone).tokens == generate(members, **alone).tokens
    assert own in generate(members, bias={own: 100.0}).tokens


@pytest.mark.parametrize("threshold", [None, 0.5])
def test_a_request_that_leaves_no_token_says_why(threshold):
    pairs = [copied_pair(folder) for folder in EMBEDDED[:2]]
    with torch.no_grad():
        for model, _ in pairs:
            model.lm_head.weight *= 1000
    with ensemble_of(pairs) as sharp:
        asked = {"max_tokens": 5, "threshold": threshold, "logit_bias": {" of": 100.0}}
        with pytest.raises(RequestError, match=r"no token has any .* logit_bias=.*use smaller numbers"):
            sharp.generate(PROMPT, **asked)
        with pytest.raises(RequestError, match=r"for members m0(, m1)? with logit_bias="):
            sharp.generate("{document} " + PROMPT, documents=["One.", "Two."], **asked)
        with pytest.raises(RequestError, match=r"no token of those that the grammar allows has any .* logit_bias="):
            sharp.generate(PROMPT, grammar=Grammar.regex("[0-9]"), **asked)
        assert sharp.generate(PROMPT, max_tokens=5).tokens


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        ({10**9: 1.0}, r"1000000000, which is no token of the gate"),
        ({-1: 1.0}, r"-1, which is no token"),
        ({"no single token": 1.0}, r"'no single token', which is not exactly one token"),
        ({b"\xff\xfe\xfd": 1.0}, r"is not exactly one token"),
        ({" of": 1.0, b" of": 2.0}, r"two values for the token b' of': 1 and, by the key b' of', 2"),
    ],
)
def test_keys_that_are_no_tokens_are_named(members, bias, message):
    with pytest.raises(RequestError, match=message):
        members.generate(PROMPT, logit_bias=bias)


@pytest.mark.parametrize(
    "wrong",
    [
        {"presence_penalty": 2.1},
        {"frequency_penalty": "1"},
        {"logit_bias": [1]},
        {"logit_bias": {True: 1}},
        {"logit_bias": {1.5: 1}},
        {"logit_bias": {1: 101}},
        {"logit_bias": {1: None}},
        {"logit_bias": {"": 1}},
    ],
)
def test_wrong_values_are_named(wrong):
    with pytest.raises(RequestError, match=next(iter(wrong))):
        SamplingParams(**wrong)


@pytest.mark.parametrize("asked", [{"presence_penalty": 1.0}, {"frequency_penalty": 1.0}, {"logit_bias": {1: 1.0}}])
def test_scores_refuse_them(members, asked):
    with pytest.raises(RequestError, match=f"leave out {next(iter(asked))}"):
        members.score(PROMPT, " four", **asked)


def test_a_bias_alone_is_made_once(members):
    union = members._union
    adjustment = LogitAdjustment(union, {union.ids[b"n"]: 3.0}, 0.0, 0.0)
    first = adjustment.offsets()
    adjustment.count(b"n")
    assert adjustment.offsets([b"n", b" of"]) is first


def test_factors_are_scaled_by_the_largest(members):
    union = members._union
    probs = torch.full((len(union),), 1 / len(union))
    one, other = union.ids[b" of"], union.ids[b"n"]
    adjustment = LogitAdjustment(union, {one: 100.0, other: 30.0}, 1.0, 2.0)
    adjustment.count(b"n")
    scaled = probs.clone()
    scale_probs(scaled[None], [adjustment.offsets([b"n", b"n"])])
    assert scaled[one] * len(union) == 1
    # 30 - 1 - 3 * 2 is 77 below the largest; the others are 100 below, where float32 ends.
    assert float(scaled[other]) * len(union) == pytest.approx(math.exp(-77), rel=1e-5)
    assert int((scaled > 0).sum()) == 2
    mask = probs > 0
    mask[one] = False
    masked = probs * mask
    scale_probs(masked[None], [adjustment.offsets([b"n", b"n"])], mask[None])
    assert masked[other] == probs[other]
    third = union.ids[b" the"]
    assert float(masked[third]) * len(union) == pytest.approx(math.exp(-23), rel=1e-5)
    assert masked[one] == 0
