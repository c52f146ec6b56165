"""Requests with documents: laws, an independent reference, and which voices carried each token."""

from __future__ import annotations

import math

import pytest
import torch
from conftest import ensemble_of, random_pair
from test_document_rules import reference as contributions
from test_drafts import eager

from gac_core import (
    Document,
    DocumentPrompt,
    Grammar,
    InvalidLogitsError,
    MemberError,
    RequestError,
    Voice,
    VoicesPrompt,
)

TEXTS = ["The Torno Bridge was built by Ada Meln in 1874.", "Lake Vessa is 310 metres deep.", "Nim has 12 mills."]
QUESTION = "{document}\nQuestion: Who built the bridge?\nAnswer:"
DOCUMENTS = [Document(text, id=name) for text, name in zip(TEXTS, "abc", strict=True)]
PROMPT = DocumentPrompt(QUESTION, DOCUMENTS, weights=[3, 2, 1])


def asked(text):
    return QUESTION.replace("{document}", text)


def reference_answer(members, weights, shares, steps, rule):
    """Greedy decoding over documents in float64: tokens, and at each of them every voice's share and the prior's."""
    union = sorted({data for member in members for data in member.ids})
    documents = [*sorted(zip(TEXTS, "abc", shares, strict=True)), ("", None, 0.0)]
    texts = {
        (row, name): members[row].prompt(asked(text)) for row in range(len(members)) for text, name, _ in documents
    }
    prompts = {key: list(ids) for key, ids in texts.items()}
    out, found = [], []
    while len(out) < steps:
        parts = {key: members[key[0]].distribution(ids, union) for key, ids in texts.items()}
        mixed = {
            name: sum(weight * parts[row, name] for row, weight in enumerate(weights)) / sum(weights)
            for _, name, _ in documents
        }
        names = [name for _, name, _ in documents[:-1]]
        own = [share / sum(shares) for _, _, share in documents[:-1]]
        given = contributions(rule, [mixed[name] for name in names], own, mixed[None])
        total = given.amax(0) if "contrast" in rule else given.sum(0)
        total = total / total.sum()
        pick = int(total.argmax())
        votes = {
            (name, row): float(given[index, pick] / given[:, pick].sum() * weight * parts[row, name][pick])
            / sum(each * float(parts[place, name][pick]) for place, each in enumerate(weights))
            for index, name in enumerate(names)
            for row, weight in enumerate(weights)
        }
        entropy = -sum(p * math.log(p) for p in total.tolist() if p)
        tops = [int(mixed[name].argmax()) == pick for name in names]
        found.append((votes, float(mixed[None][pick]), entropy, sum(tops) / len(tops)))
        if pick == len(union):
            break
        out.append(union[pick])
        for key, ids in texts.items():
            single = parts[key][pick] >= total[pick] / 2 and union[pick] in members[key[0]].ids
            anew = None if single else members[key[0]].cut(b"".join(out))
            if anew is None:
                ids.extend(members[key[0]].write(union[pick]))
            else:
                ids[len(prompts[key]) :] = anew
    return out, found


@pytest.mark.parametrize("rule", ["mean", "contrast", "contrast:jsd", "confidence"])
def test_answers_and_votes_equal_the_reference(ensemble, plain_members, rule):
    """Two members, three documents and the prior."""
    names, weights = ensemble.names, [2.0, 1.0]
    tokens, figures = reference_answer(plain_members[:2], weights, [3, 2, 1], 6, rule)
    asked = {"weights": [*weights, 0.0], "combine_documents": rule, "max_tokens": 6, "token_stats": True}
    output = ensemble.generate(PROMPT, **asked)
    assert list(output.tokens) == tokens
    for stats, (votes, prior, entropy, agreement) in zip(output.token_stats, figures, strict=True):
        found = {(vote.document, names.index(vote.member)): vote.share for vote in stats.votes}
        assert found == pytest.approx(votes, abs=1e-4)
        assert sum(found.values()) == pytest.approx(1)
        assert (stats.prior, stats.entropy) == pytest.approx((prior, entropy), abs=1e-4)
        assert stats.agreement == pytest.approx(agreement)
        assert {(each.document, each.member) for each in stats.members} == {
            (name, member) for name in "abc" for member in names[:2]
        }
    assert output.stats.settings.combine_documents == rule


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"combine": "safe"},
        {"combine": "power:0.5", "temperature": 0.9, "seed": 4},
        {"combine_documents": "confidence", "combine": "core"},
        {"combine_documents": "confidence", "grammar": Grammar.regex("[a-z ]{12}"), "threshold": 0.9},
        {"logit_bias": {b" the": 3.0}, "presence_penalty": 1.0, "temperature": 1.0, "seed": 2},
    ],
    ids=str,
)
def test_one_document_and_copies_of_it_are_the_plain_request(ensemble, settings):
    settings = {"max_tokens": 10, "weights": [1.0, 2.0, 5.0], **settings}
    plain = ensemble.generate(asked(TEXTS[0]), **settings)
    once = ensemble.generate(QUESTION, documents=TEXTS[:1], **settings)
    copies = [
        Voice(name, asked(TEXTS[0]), document=document, weight=3.0) for name in ensemble.names for document in "xy"
    ]
    twice = ensemble.generate(voices=copies, **settings)
    for output in (once, twice):
        assert output.tokens == plain.tokens
        assert output.stats.steps_ensembled == plain.stats.steps_ensembled


@pytest.mark.parametrize("rule", ["mean", "confidence", "contrast"])
def test_a_document_of_overwhelming_weight_answers_alone(ensemble, rule):
    asked = {"max_tokens": 10, "combine_documents": rule}
    weighted = DocumentPrompt(QUESTION, DOCUMENTS, weights=[1, 1e12, 1])
    alone = ensemble.generate(DocumentPrompt(QUESTION, DOCUMENTS[1:2]), **asked)
    output = ensemble.generate(weighted, token_stats=True, **asked)
    assert output.tokens == alone.tokens
    for stats in output.token_stats:
        assert sum(vote.share for vote in stats.votes if vote.document == "b") == pytest.approx(1, abs=1e-4)
    if rule != "contrast":
        assert output.tokens == ensemble.generate(QUESTION.replace("{document}", TEXTS[1]), max_tokens=10).tokens


def test_a_member_of_overwhelming_weight_reads_all_documents_alone(ensemble):
    for combine in ("arithmetic", "geometric"):
        asked = {"max_tokens": 8, "combine": combine}
        heavy = ensemble.generate(PROMPT, weights=[1e12, 1, 1], **asked)
        assert heavy.tokens == ensemble.generate(PROMPT, weights=[1, 0, 0], **asked).tokens


def test_a_gate_that_decides_alone_has_the_whole_vote(ensemble):
    output = ensemble.generate(PROMPT, max_tokens=16, threshold=0.6, token_stats=True)
    alone = [stats for stats in output.token_stats if not stats.ensembled]
    assert 0 < len(alone) < len(output.token_stats)
    for stats in alone:
        (vote,) = stats.votes
        assert (vote.document, vote.member, vote.share) == ("a", ensemble.gate, 1.0)
        assert vote.probability == pytest.approx(stats.confidence)
        assert (stats.prior, stats.agreement, stats.divergence) == (None, None, None)
    for stats in output.token_stats:
        if stats.ensembled:
            assert len(stats.votes) == 9
            assert stats.prior is not None


def test_consensus_saves_steps_and_changes_no_token(ensemble):
    """The gate's share is that of one voice among all that read a document."""
    prompt = DocumentPrompt(QUESTION, DOCUMENTS, weights=[40, 1, 1])
    asked = {"max_tokens": 16, "weights": [1, 1, 8], "gate": ensemble.names[2]}
    every = ensemble.generate(prompt, **asked)
    saving = ensemble.generate(prompt, gate_rule="consensus", threshold=1.0, **asked)
    assert saving.tokens == every.tokens
    assert saving.stats.steps_ensembled < every.stats.steps_ensembled
    never = ensemble.generate(PROMPT, gate_rule="consensus", threshold=1.0, **asked)
    assert never.stats.share_ensembled == 1


def test_contrast_needs_a_prior(ensemble):
    without = DocumentPrompt(QUESTION, TEXTS, prior=False)
    with pytest.raises(RequestError, match=r"'contrast' compares documents.*give DocumentPrompt.prior"):
        ensemble.generate(without, combine_documents="contrast")
    output = ensemble.generate(without, max_tokens=4, token_stats=True)
    assert [stats.prior for stats in output.token_stats] == [None] * 4
    assert (
        ensemble.generate("plain", max_tokens=1, combine_documents="contrast").stats.settings.combine_documents is None
    )


@pytest.mark.parametrize("rule", ["mean", "confidence", "contrast"])
def test_grammar_and_bias_remove_mass_from_every_voice(ensemble, rule):
    asked = {"combine_documents": rule, "max_tokens": 12, "token_stats": True}
    for settings in ({"grammar": Grammar.regex("[0-9]{3} (metres|mills)")}, {"logit_bias": {b" the": -100, b" a": 5}}):
        for combine in ("arithmetic", "geometric"):
            output = ensemble.generate(PROMPT, combine=combine, **asked, **settings)
            for stats in output.token_stats:
                if stats.forced:
                    assert stats.votes == ()
                    continue
                assert sum(vote.share for vote in stats.votes) == pytest.approx(1)
                figures = [stats.confidence, stats.prior, stats.entropy, *(vote.probability for vote in stats.votes)]
                assert all(math.isfinite(figure) and figure >= 0 for figure in figures)
                assert max(stats.confidence, stats.prior, *(vote.probability for vote in stats.votes)) < 1 + 1e-5


@pytest.mark.parametrize(
    "settings",
    [
        {"combine_documents": "contrast"},
        {"combine_documents": "confidence", "temperature": 1.0, "seed": 5},
        {"combine": "safe", "threshold": 0.05},
        {"threshold": 0.05, "temperature": 1.0, "seed": 5},
    ],
    ids=str,
)
def test_drafts_leave_the_text_as_it_is(settings):
    pairs = [random_pair("llama"), random_pair("gpt2", 1)]
    with ensemble_of(pairs, drafts=["lookup", "ahead"]) as two:
        plain = two.generate(PROMPT, max_tokens=16, drafts=False, **settings)
        eager(two)
        drafted = two.generate(PROMPT, max_tokens=16, **settings)
        assert drafted.tokens == plain.tokens
        assert drafted.stats.steps_ensembled == plain.stats.steps_ensembled
        assert drafted.stats.drafted > 0


def test_a_prior_that_computes_nothing_usable_is_noticed():
    prompt = VoicesPrompt([Voice("m0", asked(TEXTS[0]), document="a"), Voice("m1", asked(""), prior=True)])
    pairs = [random_pair("llama"), random_pair("gpt2", 1)]
    with ensemble_of(pairs, on_member_failure="drop") as two:
        want = two.generate(VoicesPrompt([prompt.voices[0]]), max_tokens=4, gate="m0")
        with torch.no_grad():
            pairs[1][0].get_output_embeddings().weight.fill_(float("nan"))
        for rule in ("mean", "contrast"):
            got = two.generate(prompt, max_tokens=4, combine_documents=rule)
            assert (got.tokens, [dropped.member for dropped in got.stats.dropped]) == (want.tokens, ["m1"])


def test_a_prior_alone_does_not_answer():
    pairs = [random_pair("llama"), random_pair("gpt2", 1)]
    with ensemble_of(pairs, on_member_failure="drop") as two:
        with torch.no_grad():
            pairs[0][0].get_output_embeddings().weight.fill_(float("nan"))
        prompt = VoicesPrompt([Voice("m0", asked(TEXTS[0]), document="a"), Voice("m1", asked(""), prior=True)])
        with pytest.raises(InvalidLogitsError, match="'m0'"):
            two.generate(prompt, max_tokens=4)


def test_prompt_lookup_knows_all_documents(ensemble):
    """The gate reads the first document; the others are those that its member reads, without the prior."""
    request, _ = ensemble._input_processor.request(PROMPT, None, {})
    assert bytes(request.written).endswith(asked(TEXTS[0]).encode())
    assert [
        prompt[-len(asked(text)) :].decode() for prompt, text in zip(request.other_prompts, TEXTS[1:], strict=True)
    ] == [asked(text) for text in TEXTS[1:]]


def test_a_fault_while_a_document_is_read_does_not_outlast_it():
    """What a document's entry would hold is no more finite than the logits."""
    pairs = [random_pair("llama"), random_pair("gpt2", 1)]
    embeddings = pairs[1][0].get_input_embeddings().weight
    sound = embeddings.detach().clone()
    with ensemble_of(pairs, on_member_failure="drop") as two:
        with torch.no_grad():
            embeddings.fill_(float("nan"))
        faulty = two.generate(PROMPT, max_tokens=2)
        with pytest.raises(MemberError, match=r"member 'm1'.*keys and values of the document are not finite"):
            two.warm(QUESTION, DOCUMENTS)
        with torch.no_grad():
            embeddings.copy_(sound)
        again = two.generate(PROMPT, max_tokens=2)
    assert [[dropped.member for dropped in each.stats.dropped] for each in (faulty, again)] == [["m1"], []]
