"""Voices: values, and laws of requests whose members read several prompts."""

from __future__ import annotations

import math
import re

import pytest
from conftest import EMBEDDED, ensemble_of, pair, random_pair, shared_ensemble

from gac_core import (
    Conversation,
    Document,
    DocumentPrompt,
    Ensemble,
    Grammar,
    PromptTooLongError,
    RequestError,
    Voice,
    VoicesPrompt,
)
from gac_core.voices import SHARPNESS, as_prompt

TEXTS = ["The Torno Bridge was built by Ada Meln in 1874.", "Lake Vessa is 310 metres deep.", "Nim has 12 mills."]
LONG = [text * 3 for text in TEXTS]
QUESTION = "{document}\nQuestion: Who built the bridge?\nAnswer:"


def asked(text: str) -> str:
    return QUESTION.replace("{document}", text)


def same(one, other) -> None:
    assert one.tokens == other.tokens
    assert one.text == other.text


# ---- values


def test_documents_have_ids_and_weights_by_their_scores():
    given = [Document("a", score=2.0), {"text": "b", "score": 1.0, "id": "own"}, {"text": "c", "score": -2}]
    weights = DocumentPrompt(QUESTION, given).document_weights()
    assert [(document.id, document.text) for document, _ in weights.values()] == [("1", "a"), ("own", "b"), ("3", "c")]
    assert [weight for _, weight in weights.values()] == pytest.approx(
        [1.0, math.exp(-SHARPNESS / 2), math.exp(-2 * SHARPNESS)]
    )
    assert [weight for _, weight in DocumentPrompt(QUESTION, ["a", "b"]).document_weights().values()] == [1.0, 1.0]


def test_equal_documents_are_one_with_the_largest_weight():
    weights = DocumentPrompt(QUESTION, ["a", "b", "a"], weights=[1, 2, 3]).document_weights()
    assert [(document.id, weight) for document, weight in weights.values()] == [("3", 3.0), ("2", 2.0)]


def test_a_document_is_put_into_its_place_as_it_is():
    prompt = DocumentPrompt([{"role": "system", "content": "x"}, {"role": "user", "content": QUESTION}], ["a"])
    filled = prompt.with_document("{document} \\1")
    assert isinstance(filled, Conversation)
    assert filled.turns[1].content == asked("{document} \\1")


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: DocumentPrompt("no place", ["a"]), "once, not 0 times"),
        (lambda: DocumentPrompt("{document} {document}", ["a"]), "once, not 2 times"),
        (lambda: DocumentPrompt(QUESTION, []), "at least one document"),
        (lambda: DocumentPrompt(QUESTION, [""]), "a document's text"),
        (lambda: DocumentPrompt(QUESTION, ["a"] * 1025), "1024 at most"),
        (lambda: DocumentPrompt(QUESTION, [{"text": "a", "title": "b"}]), "'title'"),
        (lambda: DocumentPrompt(QUESTION, [Document("a", "x"), Document("b", "x")]), "two documents have the id 'x'"),
        (lambda: DocumentPrompt(QUESTION, [Document("a", score=1), "b"]), "document '2' has no score"),
        (lambda: DocumentPrompt(QUESTION, ["a"], weights=[1, 2]), "2 weights for 1 documents"),
        (lambda: DocumentPrompt(QUESTION, ["a"], weights=[0]), "above 0"),
        (lambda: DocumentPrompt(QUESTION, ["a"], weights="best"), "'scores', 'equal' or numbers"),
        (lambda: DocumentPrompt(QUESTION, ["a"], prior=1), "prior must be True, False or a string"),
        (lambda: Document("a", score=math.nan), "score"),
        (lambda: Voice("m", "p", weight=0), "above 0"),
        (lambda: Voice("m", "p", document="d", prior=True), "leave one out"),
        (lambda: VoicesPrompt([Voice("m", "p", prior=True)]), "without prior=True"),
        (lambda: VoicesPrompt([{"member": "m"}]), "'member'"),
        (lambda: as_prompt("p", voices=[Voice("m", "p")]), "leave out prompt"),
        (lambda: as_prompt(None), "there is no prompt"),
        (lambda: as_prompt(DocumentPrompt(QUESTION, ["a"]), documents=["a"]), "leave out documents"),
    ],
)
def test_wrong_values_are_refused(make, words):
    with pytest.raises(RequestError, match=re.escape(words)):
        make()


# ---- laws


def test_one_voice_for_each_member_is_the_plain_request(ensemble):
    voices = [Voice(name, asked(TEXTS[0])) for name in ensemble.names]
    for settings in ({}, {"temperature": 0.8, "seed": 3}, {"threshold": 0.6}):
        plain = ensemble.generate(asked(TEXTS[0]), max_tokens=12, **settings)
        same(plain, ensemble.generate(voices=voices, max_tokens=12, **settings))
        same(plain, ensemble.generate(voices=voices[::-1], max_tokens=12, **settings))


@pytest.mark.parametrize("threshold", [0, 1.0])
def test_one_voice_for_each_member_is_the_plain_request_at_extreme_thresholds(ensemble, threshold):
    voices = [Voice(name, asked(TEXTS[0])) for name in ensemble.names]
    plain = ensemble.generate(asked(TEXTS[0]), max_tokens=6, threshold=threshold)
    output = ensemble.generate(voices=voices, max_tokens=6, threshold=threshold)
    same(plain, output)
    assert output.stats.members.keys() == plain.stats.members.keys()
    with pytest.raises(RequestError, match="has no voice"):
        ensemble.generate(voices=[voice for voice in voices if voice.member != ensemble.gate], threshold=0)


def test_weights_of_any_size_are_compared(ensemble):
    """Their products would be infinite, or 0."""
    names, asks = ensemble.names, {"max_tokens": 6}
    for size in (1e200, 1e-200):
        weights = [size, size, 2 * size]
        plain = ensemble.generate(asked(TEXTS[0]), weights=[1, 1, 2], **asks)
        voices = [Voice(name, asked(TEXTS[0]), weight=size) for name in names]
        same(plain, ensemble.generate(voices=voices, weights=weights, **asks))
        same(plain, ensemble.generate(DocumentPrompt(QUESTION, TEXTS[:1], weights=[size]), weights=weights, **asks))
    heavy = DocumentPrompt(QUESTION, TEXTS, weights=[1, 1e300, 1e-300], prior=False)
    alone = ensemble.generate(asked(TEXTS[1]), weights=[1e300, 1e-300, 1], **asks)
    same(alone, ensemble.generate(heavy, weights=[1e300, 1e-300, 1], **asks))


def test_voices_agree_in_the_form_of_the_answer(ensemble):
    tool = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}
    messages = [{"role": "user", "content": "Hi"}]
    one, other = Conversation(messages, tools=[tool]), Conversation(messages)
    for first, second in ((one, other), (other, one)):
        voices = [Voice(ensemble.names[0], first), Voice(ensemble.names[1], second)]
        with pytest.raises(RequestError, match="two voices differ in tools; give all voices the same"):
            ensemble.generate(voices=voices)
    with pytest.raises(RequestError, match="some voices have a string"):
        ensemble.generate(voices=[Voice(ensemble.names[0], one), Voice(ensemble.names[1], "Hi")])


def test_one_voice_is_the_member_alone(ensemble):
    name = ensemble.names[1]
    plain = ensemble.generate(
        asked(TEXTS[1]), max_tokens=12, weights={each: float(each == name) for each in ensemble.names}
    )
    same(plain, ensemble.generate(voices=[Voice(name, asked(TEXTS[1]))], max_tokens=12))


def test_copies_of_all_voices_change_nothing(ensemble):
    voices = [Voice(name, asked(text)) for name in ensemble.names[:2] for text in TEXTS[:2]]
    once = ensemble.generate(voices=voices, max_tokens=12)
    same(once, ensemble.generate(voices=voices * 3, max_tokens=12))


def test_one_document_is_the_plain_request(ensemble):
    plain = ensemble.generate(asked(TEXTS[0]), max_tokens=12)
    same(plain, ensemble.generate(QUESTION, documents=[TEXTS[0]], max_tokens=12))
    same(plain, ensemble.generate(QUESTION, documents=[TEXTS[0]] * 2, max_tokens=12))


@pytest.mark.parametrize("settings", [{}, {"threshold": 0.5}, {"temperature": 1.0, "seed": 1}])
def test_the_order_of_documents_changes_nothing(ensemble, settings):
    once = ensemble.generate(QUESTION, documents=TEXTS, max_tokens=12, **settings)
    same(once, ensemble.generate(QUESTION, documents=TEXTS[::-1], max_tokens=12, **settings))


def test_drafts_change_nothing(ensemble):
    plain = ensemble.generate(QUESTION, documents=TEXTS, max_tokens=24, drafts=False)
    same(plain, ensemble.generate(QUESTION, documents=TEXTS, max_tokens=24))


def test_company_changes_nothing(ensemble):
    prompts = [DocumentPrompt(QUESTION, TEXTS[first:]) for first in range(3)]
    alone = [ensemble.generate(prompt, max_tokens=12) for prompt in prompts]
    for one, other in zip(alone, ensemble.generate_batch(prompts, max_tokens=12), strict=True):
        same(one, other)


def _documents(ensemble: Ensemble) -> dict[str, list[list[int]]]:
    """The ids of the documents that are reused, less the last ones, which may depend on what follows."""
    encode = {member.name: member.tokenizer.encode_rendered for member in ensemble._members}
    return {name: [own(text)[:-2] for text in LONG[1:]] for name, own in encode.items()}


def test_a_reused_document_changes_nothing():
    with shared_ensemble(EMBEDDED[:2], cache_gib=0) as cold, shared_ensemble(EMBEDDED[:2]) as warm:
        want = cold.generate(QUESTION, documents=LONG, max_tokens=12)
        warm.generate("{document}\nQuestion: How deep is the lake?", documents=LONG[1:], max_tokens=12)
        got = warm.generate(QUESTION, documents=LONG, max_tokens=12)
        same(want, got)
        read = {name: sum(len(part) for part in parts) for name, parts in _documents(warm).items()}
        assert all(stats.reused_tokens >= read[name] for name, stats in got.stats.members.items())


@pytest.mark.parametrize("documents", [None, LONG])
def test_no_more_is_reused_than_the_prompts(documents):
    """A text that a grammar forces is read with the prompt, and an equal request has left both in the KV caches."""
    prompt = asked(LONG[0]) if documents is None else QUESTION
    forced = Grammar.regex("the same people as the mill in [0-9]{4}")
    with shared_ensemble(EMBEDDED[:2]) as two:
        for _ in range(2):
            stats = two.generate(prompt, documents=documents, grammar=forced, max_tokens=24).stats
    assert stats.forced > 4
    assert all(0 < each.reused_tokens <= each.prompt_tokens for each in stats.members.values())


def test_the_gate_of_documents_at_threshold_0_is_that_of_the_largest_weight(ensemble):
    for heaviest, weights in enumerate([[3, 1, 2], [1, 3, 2], [1, 2, 3]]):
        output = ensemble.generate(DocumentPrompt(QUESTION, TEXTS, weights=weights), max_tokens=12, threshold=0)
        same(ensemble.generate(asked(TEXTS[heaviest]), max_tokens=12, threshold=0), output)
        assert output.document_shares == {str(heaviest + 1): 1.0}
    assert [stats.forwards > 0 for stats in output.stats.members.values()] == [True]


def test_a_voice_of_another_member_than_the_gate_needs_another_gate(ensemble):
    gate, other = ensemble.gate, next(name for name in ensemble.names if name != ensemble.gate)
    voices = [Voice(other, asked(TEXTS[0]))]
    ensemble.generate(voices=voices, max_tokens=2)
    with pytest.raises(RequestError, match=f"the gate '{gate}' has no voice"):
        ensemble.generate(voices=voices, max_tokens=2, threshold=0.5)
    with pytest.raises(RequestError, match=f"the gate '{gate}' has no voice"):
        ensemble.generate(voices=voices, max_tokens=2, threshold=0)
    several = [*voices, Voice(gate, asked(TEXTS[1])), Voice(gate, asked(TEXTS[0]), 0.5)]
    plain = ensemble.generate(asked(TEXTS[1]), max_tokens=4, threshold=0)
    same(plain, ensemble.generate(voices=several, max_tokens=4, threshold=0))
    with pytest.raises(RequestError, match=r"takes no part in the request.*name one of these"):
        ensemble.generate(voices=[Voice("nobody", "x")])


def test_a_document_that_is_too_long_is_named():
    documents = [Document("word " * 60, "long"), "short"]
    with (
        ensemble_of([random_pair("llama")], contexts=[48]) as short,
        pytest.raises(PromptTooLongError, match=r"the prompt with document 'long'.*member 'm0'"),
    ):
        short.generate(QUESTION, documents=documents)


def test_weights_by_perplexity_need_one_prompt(ensemble):
    with pytest.raises(RequestError, match="perplexity"):
        ensemble.generate(QUESTION, documents=TEXTS, weights="perplexity")


def test_a_member_that_fails_is_left_out_with_all_its_voices():
    pairs = [pair(folder) for folder in EMBEDDED[:2]]
    with ensemble_of(pairs, on_member_failure="drop") as two:
        want = two.generate(QUESTION, documents=TEXTS, max_tokens=8, weights=[1, 0])
        broken = two._members[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(broken._runner, "forward", lambda rows: [None] * len(rows))
            got = two.generate(QUESTION, documents=TEXTS, max_tokens=8)
        same(want, got)
        assert [dropped.member for dropped in got.stats.dropped] == ["m1"]


def test_a_request_frees_the_slots_of_all_its_voices(ensemble):
    ensemble.generate(QUESTION, documents=TEXTS, max_tokens=4)
    stream = ensemble.stream(QUESTION, documents=TEXTS, max_tokens=50)
    next(stream)
    stream.close()
    ensemble.generate("x", max_tokens=1)
    assert [member._slots.num_running for member in ensemble._members] == [0] * 3
