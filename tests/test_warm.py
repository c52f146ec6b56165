"""`Ensemble.warm`: documents are computed before they are asked about, kept, pinned, and give the same answers."""

from __future__ import annotations

import asyncio
import random

import pytest
import torch
from conftest import EMBEDDED, ensemble_of, pair, shared_ensemble, tokenizer_of
from transformers import BloomConfig, BloomForCausalLM

from gac_core import (
    Document,
    DocumentPrompt,
    Ensemble,
    MemberConfig,
    RequestError,
    RequestTimeoutError,
    SamplingParams,
    WarmedMember,
)

DOCUMENTS = [
    f"The {name} Bridge stands in Halkus. It was built in 18{number}4 by Melka Dorin."
    for number, name in enumerate(["Torno", "Velm", "Kasra", "Odin", "Ruun"], 3)
]
HEAD = "Passage: {document}\n"
ASK = "Passage: {document}\nQuestion: Who built it, and where is it?\nAnswer:"


@pytest.fixture(scope="module")
def cold():
    """Computes every prompt anew."""
    with shared_ensemble(EMBEDDED, cache_gib=0, document_cache_gib=0) as loaded:
        yield loaded


@pytest.mark.parametrize("threshold", [None, 0.6])
def test_answers_from_warm_documents_are_those_from_cold_ones(cold, threshold):
    """In random order and company; slots keep nothing, so that documents are found in their entries alone."""
    draw = random.Random(7)
    with shared_ensemble(EMBEDDED, cache_gib=0, document_cache_gib=0.125) as warm:
        report = warm.warm(HEAD, DOCUMENTS)
        assert report.documents == ("1", "2", "3", "4", "5")
        assert {name: (own.documents, own.reused_tokens) for name, own in report.members.items()} == dict.fromkeys(
            ("ash", "birch", "cedar"), (5, 0)
        )
        for _ in range(3):
            chosen = draw.sample(DOCUMENTS, 3)
            want = cold.generate(ASK, documents=sorted(chosen), max_tokens=6, threshold=threshold)
            got = warm.generate(ASK, documents=chosen, max_tokens=6, threshold=threshold)
            assert got.tokens == want.tokens
            reused = [own.reused_tokens for own in got.stats.members.values() if own.tokens]
            assert min(reused) > 3 * 30
            assert all(own.reused_tokens == 0 for own in want.stats.members.values())
        (health, *_) = warm.health().members
        assert (health.documents, health.document_cache_bytes) == (5, report.members["ash"].nbytes)


def test_documents_of_requests_are_kept_as_well():
    with shared_ensemble(EMBEDDED[:1], cache_gib=0, document_cache_gib=0.125) as ensemble:
        first = ensemble.generate(ASK, documents=DOCUMENTS[:2], max_tokens=2).stats.members["ash"]
        second = ensemble.generate(ASK, documents=DOCUMENTS[1:3], max_tokens=2).stats.members["ash"]
    assert first.reused_tokens == 0
    assert 0 < second.reused_tokens < first.prompt_tokens / 2
    assert first.kept_bytes == pytest.approx(second.kept_bytes, rel=0.1)


def test_warm_documents_are_neither_computed_nor_counted_twice():
    with shared_ensemble(EMBEDDED[:2], document_cache_gib=0.125) as ensemble:
        messages = [{"role": "user", "content": ASK}]
        report = ensemble.warm(messages, [DOCUMENTS[0], DOCUMENTS[1], {"text": DOCUMENTS[0], "id": "again"}])
        assert report.documents == ("1", "2")
        again = asyncio.run(ensemble.awarm(messages, [Document(DOCUMENTS[1], id="b"), DOCUMENTS[0]], pin=False))
        assert again.documents == ("b", "2")
        for name, own in report.members.items():
            assert again.members[name] == WarmedMember(2, 0, own.tokens, own.nbytes)
        asked = ensemble.generate(DocumentPrompt(messages, DOCUMENTS[:2], prior=False), max_tokens=1)
        for name, stats in asked.stats.members.items():
            assert stats.reused_tokens == report.members[name].tokens


def test_pins_beyond_the_bound_are_refused_until_documents_are_unpinned():
    with shared_ensemble(EMBEDDED[:1], document_cache_gib=0.125) as ensemble:
        size = ensemble.warm(HEAD, DOCUMENTS[:1]).members["ash"].nbytes
    with shared_ensemble(EMBEDDED[:1], cache_gib=0, document_cache_gib=2.5 * size / 2**30) as ensemble:
        ensemble.warm(HEAD, DOCUMENTS[:2])
        with pytest.raises(RequestError, match=r"the pinned documents of member 'ash' would take \d+ bytes, and doc"):
            ensemble.warm(HEAD, DOCUMENTS[2:3])
        loose = ensemble.warm(HEAD, DOCUMENTS[2:3], pin=False).members["ash"]
        assert (loose.documents, loose.nbytes) == (0, 0)
        ensemble.warm(HEAD, DOCUMENTS[:1], pin=False)
        assert ensemble.warm(HEAD, DOCUMENTS[2:3]).members["ash"].documents == 1
        assert ensemble.warm(HEAD, DOCUMENTS[1:3]).members["ash"].tokens == 0


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"deterministic": True}, "deterministic=True reuses no keys and values"),
        ({"document_cache_gib": 0}, "document_cache_gib is 0.0, so that no documents are kept; set it above 0"),
    ],
)
def test_ensembles_that_keep_nothing_say_so(settings, reason):
    with shared_ensemble(EMBEDDED[:1], **settings) as ensemble, pytest.raises(RequestError, match=reason):
        ensemble.warm(HEAD, DOCUMENTS)


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ((HEAD, []), "documents must contain at least one document"),
        (("no place", DOCUMENTS), "must contain the place of the document"),
        ((HEAD, [DOCUMENTS[0], 3]), "each document must be"),
        ((HEAD, [Document("a", id="x"), Document("b", id="x")]), "two documents have the id 'x'"),
        ((HEAD, ["a " * 3000]), "the prompt with document '1' is 30.. tokens long for member 'ash', whose context"),
    ],
)
def test_arguments_are_checked(ensemble: Ensemble, arguments, reason):
    with pytest.raises(RequestError, match=reason):
        ensemble.warm(*arguments)
    with pytest.raises(RequestError, match="pin must be"):
        ensemble.warm(HEAD, DOCUMENTS, pin=1)


def test_warming_takes_turns_with_requests_and_ends_in_time():
    """A stream gets a token at every step while documents are read in parts; a deadline ends the reading."""
    long = [document * 8 for document in DOCUMENTS]
    with shared_ensemble(EMBEDDED[:1], prefill_seconds=1e-6, max_batch_size=4) as one:
        engine = one._session.worker._engine
        steps: list[list[int]] = []
        decode = engine._decoder.decode
        engine._decoder.decode = lambda batch: steps.append(list(map(len, out := decode(batch)))) or out
        running = one.stream("passages", temperature=5.0, seed=1, max_tokens=200)
        next(running)
        assert one.warm(HEAD, long).members["ash"].documents == 5
        running.close()
        together = [lengths for lengths in steps if len(lengths) > 1]
        assert len(together) > 5
        assert all(lengths[0] >= 1 for lengths in together)
        with pytest.raises(RequestTimeoutError):
            one.warm(HEAD, [text[::-1] for text in long], SamplingParams(timeout=1e-3))
        assert one.generate("passages", max_tokens=1).text


def row_by_row(tokenizer):
    """A model with ALiBi, which takes no position ids."""
    torch.manual_seed(0)
    config = BloomConfig(vocab_size=len(tokenizer), hidden_size=32, n_layer=2, n_head=2, initializer_range=0.3)
    model = BloomForCausalLM(config).eval()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def test_members_that_run_row_by_row_keep_nothing_and_the_others_do():
    documents = {"documents": DOCUMENTS[:2], "max_tokens": 4}
    slow = row_by_row(tokenizer_of(EMBEDDED[0]))
    with ensemble_of([slow]) as alone, pytest.raises(RequestError, match="members m0 run row by row"):
        alone.warm(HEAD, DOCUMENTS)
    with ensemble_of([pair(EMBEDDED[1]), slow], cache_gib=0) as both:
        want = both.generate(ASK, **documents)
        report = both.warm(HEAD, DOCUMENTS)
        assert (report.members["m0"].documents, report.members["m1"]) == (5, WarmedMember())
        got = both.generate(ASK, **documents)
    assert got.tokens == want.tokens
    assert got.stats.members["m0"].reused_tokens > 60
    assert got.stats.members["m0"].kept_bytes > 0
    assert got.stats.members["m1"].kept_bytes == 0


def test_two_names_of_one_model_keep_documents_once():
    names = [MemberConfig(EMBEDDED[0], name=name, dtype="float32") for name in ("one", "two")]
    with Ensemble.load(names, cache_gib=0.0625) as ensemble:
        report = ensemble.warm(HEAD, DOCUMENTS)
        assert [own.documents for own in report.members.values()] == [5, 5]
        assert [state.documents for state in ensemble.health().members] == [5, 5]


@pytest.mark.ray
def test_documents_are_kept_by_actors_beside_the_model(ray_nodes):
    asked = {"documents": DOCUMENTS[:2], "max_tokens": 6}
    with shared_ensemble(EMBEDDED[:2]) as local, ray_nodes.load(EMBEDDED[:2]) as remote:
        # The actors may hold documents of other tests.
        remote.generate("x", max_tokens=1)
        before = remote.health().members[1].document_cache_bytes
        report = local.warm(HEAD, DOCUMENTS[:2])
        assert remote.warm(HEAD, DOCUMENTS[:2]) == report
        wanted, found = local.generate(ASK, **asked), remote.generate(ASK, **asked)
        assert remote.health().members[1].document_cache_bytes - before == report.members["birch"].nbytes
    assert found.tokens == wanted.tokens
    assert found.stats.members["birch"].reused_tokens > 50
