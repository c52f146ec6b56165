"""LangChain's documents as the ensemble's, and citations as annotations of messages and chunks."""

from __future__ import annotations

from dataclasses import asdict

import pytest
from langchain_core.documents import Document
from langchain_core.messages.content import Citation as StandardCitation
from test_langchain_voices import DOCUMENTS, notes, sum_of

from gac_core import (
    Citation,
    Doubt,
    FinishReason,
    OutputChunk,
    RequestError,
    RequestOutput,
    RequestStats,
    Usage,
)
from gac_core import Document as VoiceDocument
from gac_langchain.answers import ChunkReader, to_message
from gac_langchain.documents import asked_of_documents, to_annotation, to_documents

DOUBT = Doubt(agreement=1.0, share=0.75)
SPANS = (
    Citation(0, 6, "Halkus", "torno", 0.75, {"torno": 0.75, "7": 0.25}, {"ash": 1.0}, DOUBT),
    Citation(7, 13, "Borfen", "7", 0.5, {"torno": 0.5, "7": 0.5}, {"ash": 1.0}, DOUBT),
)


def test_documents_in_all_forms():
    others = ["text", {"text": "other", "score": 3}, VoiceDocument("own", "x"), Document("7th", id="x")]
    found = to_documents([*DOCUMENTS, *others])
    documents = [document for document, _ in found.values()]
    assert [document.id for document in documents] == list(found) == ["torno", "7", "3", "4", "x", "x#2"]
    assert [document.score for document in documents] == [2.0, 1.0, None, 3, None, None]
    sources = [source for _, source in found.values()]
    assert (sources[0].title, sources[0].url) == ("bridges.md", None)
    assert (sources[1].title, sources[1].url) == ("Velgin", "https://bridges.example/velgin")
    assert (sources[2].text, sources[2].title) == ("text", None)


def test_the_score_of_a_reranker_comes_before_that_of_the_store():
    metadata = {"score": 1.0, "relevance_score": 0.5, "own": 0.25, "wrong": "high", "flag": True}
    document = Document("text", metadata=metadata)
    scores = [to_documents([document], key)["1"][0].score for key in (None, "score", "own", "none")]
    assert scores == [0.5, 1, 0.25, None]
    for key in ("wrong", "flag"):
        with pytest.raises(RequestError, match=f"the '{key}' in the metadata of document '1' must be a number"):
            to_documents([document], key)
    other = Document("other", metadata={"score": "high"})
    prompt, _ = asked_of_documents("{document}", {"documents": [document, other], "document_weights": "equal"})
    assert [each.score for each in prompt.documents] == [None, None]


def test_scores_under_different_keys_are_not_mixed():
    documents = [Document("a", metadata={"score": 20.0}), Document("b", metadata={"relevance_score": 0.5})]
    assert [document.score for document, _ in to_documents(documents).values()] == [None, 0.5]


def test_a_document_without_text_is_named():
    with pytest.raises(RequestError, match="document '2' has no text; leave it out"):
        to_documents([Document("a"), Document("")])


# ---- citations


def output(text, spans=()):
    shares = {"torno": 0.75, "7": 0.25}
    stop, usage = FinishReason.STOP, Usage(5, 2)
    return RequestOutput(
        "r",
        text,
        (),
        stop,
        None,
        usage,
        RequestStats(),
        None,
        None,
        citations=spans,
        document_shares=shares,
        doubt=DOUBT,
    )


@pytest.mark.parametrize(("texts", "spans"), [(("Halkus ", "Borfen"), SPANS), (("It", ""), ()), (("",), ())])
def test_chunks_with_citations_add_up(texts, spans):
    sources = {name: source for name, (_, source) in to_documents(DOCUMENTS).items()}
    whole = output("".join(texts), spans)
    reader = ChunkReader("ash", sources)
    parts = [*map(OutputChunk, texts), OutputChunk("", output=whole)]
    chunks = [chunk.message for part in parts for chunk in reader(part)]
    message = to_message(whole, "ash", sources)
    found = sum_of(chunks)
    assert (found.content, found.text) == (message.content, message.text)
    assert found.content_blocks == message.content_blocks
    assert found.response_metadata == message.response_metadata
    assert found.response_metadata["doubt"]["share"] == 0.75
    assert found.response_metadata["document_shares"] == {"torno": 0.75, "7": 0.25}
    assert [note.get("url") for note in notes(found)] == [None, "https://bridges.example/velgin"][: len(spans)]


def test_an_annotation_is_langchains_citation():
    (_, source), _ = to_documents(DOCUMENTS).values()
    note = to_annotation(SPANS[0], {"torno": source})
    assert note == {
        "type": "citation",
        "start_index": 0,
        "end_index": 6,
        "cited_text": "The Torno Bridge stands in Halkus.",
        "title": "bridges.md",
        "extras": {
            "document": "torno",
            "share": 0.75,
            "shares": {"torno": 0.75, "7": 0.25},
            "members": {"ash": 1.0},
            "doubt": asdict(DOUBT),
        },
    }
    assert set(note) <= set(StandardCitation.__annotations__)
