"""Documents that vote, on real language models: laws token for token in fp32, and which document carries an answer."""

from __future__ import annotations

import pytest

from gac_core import Document, DocumentPrompt

pytestmark = pytest.mark.real

DOCUMENTS = [
    Document("The Torno Bridge is the work of the engineer Melka Dorin. It was built in 1874.", id="bridge"),
    Document("Lake Vessa lies in the north of the country. It is 310 metres deep.", id="lake"),
    Document("The mills of Nim were closed in 1901, when the railway came to the valley.", id="mills"),
]
QUESTION = (
    "{document}\n\nQuestion: Which engineer is the Torno Bridge the work of?\nAnswer: The Torno Bridge is the work of"
)


@pytest.fixture(scope="module")
def members(real):
    """Two members with different tokenizers, the second three times as heavy."""
    with real.ensemble("smollm2", "qwen", weights=[1.0, 3.0]) as loaded:
        yield loaded


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"combine": "geometric", "combine_documents": "confidence"},
        {"temperature": 0.7, "seed": 3},
        {"threshold": 0.8},
    ],
    ids=str,
)
def test_one_document_is_the_plain_request(members, settings):
    plain = members.generate(QUESTION.replace("{document}", DOCUMENTS[0].text), max_tokens=12, **settings)
    output = members.generate(DocumentPrompt(QUESTION, DOCUMENTS[:1]), max_tokens=12, **settings)
    assert output.tokens == plain.tokens


@pytest.mark.parametrize("rule", ["mean", "confidence", "contrast"])
def test_drafts_order_and_company_change_nothing(members, rule):
    asked = {"max_tokens": 10, "combine_documents": rule}
    plain = members.generate(DocumentPrompt(QUESTION, DOCUMENTS), drafts=False, **asked)
    assert members.generate(DocumentPrompt(QUESTION, DOCUMENTS[::-1]), **asked).tokens == plain.tokens
    batch = [DocumentPrompt(QUESTION, DOCUMENTS), "The capital of France is"]
    assert members.generate_batch(batch, **asked)[0].tokens == plain.tokens


@pytest.mark.parametrize("rule", ["confidence", "contrast"])
def test_the_document_with_the_answer_carries_it(members, rule):
    """Two of three documents do not contain the name."""
    output = members.generate(
        DocumentPrompt(QUESTION, DOCUMENTS), max_tokens=8, combine_documents=rule, token_stats=True
    )
    assert "Melka Dorin" in output.text
    shares = [sum(vote.share for vote in stats.votes if vote.document == "bridge") for stats in output.token_stats]
    spelled = [index for index, stats in enumerate(output.token_stats) if b"Mel" in stats.token]
    assert shares[spelled[0]] > 0.5
