"""Documents that are kept in the KV caches of real models give the answers of transformers, token for token in fp32."""

from __future__ import annotations

import random

import pytest
from test_real_laws import generate

from gac_core import DocumentPrompt

pytestmark = pytest.mark.real

FACTS = [
    ("Torno Bridge", "built in 1874 by Melka Dorin", "Halkus"),
    ("Velm Tower", "designed in 1921 by Ana Kross", "Perrin"),
    ("Kasra Museum", "founded in 1956 by Ilo Marten", "Odda"),
]
# The last one is longer than the sliding window of Gemma 3 (512 tokens).
DOCUMENTS = [
    f"The {name} stands in {place}. It was {made}. " + f"Many people visit the {name} each year. " * repeats
    for (name, made, place), repeats in zip(FACTS, (2, 6, 70), strict=True)
]
HEAD = "Passage: {document}\n"
QUESTIONS = ["Question: Who made it?\nAnswer:", "Question: When, and in which town?\nAnswer:"]
COUNT = 8


@pytest.mark.parametrize(("name", "documents"), [("qwen", DOCUMENTS[:2]), ("gemma3", DOCUMENTS)])
def test_a_warm_document_gives_the_text_of_transformers(real, name, documents):
    with real.ensemble(name, cache_gib=0) as ensemble:
        member, (model, _) = ensemble._members[0].tokenizer, real.pair(name)
        report = ensemble.warm(HEAD, documents)
        assert report.members[name].documents == len(documents)
        order = [(document, question) for document in documents for question in QUESTIONS]
        random.Random(3).shuffle(order)
        for document, question in order:
            asked = DocumentPrompt(HEAD + question, [document], prior=False)
            got = ensemble.generate(asked, max_tokens=COUNT)
            stats = got.stats.members[name]
            assert stats.reused_tokens > 0.8 * stats.prompt_tokens - 20
            assert b"".join(got.tokens) == generate(model, member, HEAD.format(document=document) + question, COUNT)


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_several_warm_documents_give_the_tokens_of_cold_ones(real, threshold):
    with (
        real.ensemble("qwen", "gemma3", cache_gib=0, document_cache_gib=0) as cold,
        real.ensemble("qwen", "gemma3", cache_gib=0) as warm,
    ):
        warm.warm(HEAD, DOCUMENTS[:2])
        asked = {"max_tokens": COUNT, "threshold": threshold}
        want = cold.generate(HEAD + QUESTIONS[0], documents=DOCUMENTS[:2], **asked)
        got = warm.generate(HEAD + QUESTIONS[0], documents=DOCUMENTS[1::-1], **asked)
        assert got.tokens == want.tokens
        assert sum(own.reused_tokens for own in want.stats.members.values()) == 0
        assert got.stats.members["qwen"].tokens < want.stats.members["qwen"].tokens / 2
