"""Chains and calls of LangChain that answer from documents: texts, citations, streams, and what is passed on."""

from __future__ import annotations

from dataclasses import asdict
from operator import itemgetter

import numpy as np
import pytest
from conftest import QUESTION
from langchain_core.documents import Document
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage
from langchain_core.messages.content import Citation as StandardCitation
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.runnables import RunnableLambda
from pydantic import BaseModel, Field

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
from gac_langchain import ChatGaC, create_voices_chain, create_voices_retrieval_chain
from gac_langchain.answers import ChunkReader, to_message
from gac_langchain.documents import to_annotation, to_documents

SYSTEM = QUESTION[0]["content"]
USER = "Passages:\n\n{context}\n\nQuestion: {input}"
PROMPT = ChatPromptTemplate([("system", SYSTEM), ("human", USER)])
ASK = "In which town is the Torno Bridge?"
DOCUMENTS = [
    Document("The Torno Bridge stands in Halkus.", id="torno", metadata={"source": "bridges.md", "score": 2.0}),
    Document(
        "The Velgin Bridge crosses the river in Borfen.",
        metadata={"id": 7, "source": "https://bridges.example/velgin", "title": "Velgin", "score": np.float32(1)},
    ),
]
INPUTS = {"context": DOCUMENTS, "input": ASK}


DOUBT = Doubt(agreement=1.0, share=0.75)
SPANS = (
    Citation(0, 6, "Halkus", "torno", 0.75, {"torno": 0.75, "7": 0.25}, {"ash": 1.0}, DOUBT),
    Citation(7, 13, "Borfen", "7", 0.5, {"torno": 0.5, "7": 0.5}, {"ash": 1.0}, DOUBT),
)


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=24)


@pytest.fixture
def chain(chat):
    return create_voices_chain(chat, PROMPT)


def sum_of(chunks):
    return sum(chunks[1:], chunks[0])


def notes(message):
    return [note for block in message.content_blocks for note in block.get("annotations", [])]


# ---- documents


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
        with pytest.raises(RequestError, match=f"the '{key}' of a document's metadata must be a number"):
            to_documents([document], key)


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


@pytest.mark.parametrize("given", ["text", {"text": "x"}, [3], [{"body": "x"}], 3])
def test_other_documents_are_refused(chat, given):
    with pytest.raises(RequestError, match="document"):
        chat.invoke("{document} Where?", documents=given)


# ---- the chain


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_messages_with_citations_are_stored_and_passed_on(chat, chain):
    message = chain.invoke(INPUTS)
    assert loads(dumps(message), allowed_objects="messages") == message
    talk = ChatPromptTemplate([("system", SYSTEM), MessagesPlaceholder("history"), ("human", USER)])
    plain = {"history": [("human", ASK), AIMessage(message.text)], **INPUTS}
    follow = create_voices_chain(chat, talk)
    assert follow.invoke({**plain, "history": [("human", ASK), message]}).text == follow.invoke(plain).text


def test_without_documents_the_prompt_is_answered_alone(chat, chain):
    message = chain.invoke({**INPUTS, "context": []})
    assert message.content == (PROMPT | chat).invoke({"context": "", "input": ASK}).content
    assert "document_shares" not in message.response_metadata


def test_wrong_uses_of_the_chain(chat, chain):
    with pytest.raises(RequestError, match=r"variable 'context'.*its variables are: input"):
        create_voices_chain(chat, ChatPromptTemplate([("human", "{input}")]))
    with pytest.raises(RequestError, match="ChatGaC or GaCLLM, not FakeListChatModel"):
        create_voices_chain(FakeListChatModel(responses=["x"]).bind(stop=["x"]), PROMPT)
    for inputs in ({"input": ASK}, {**INPUTS, "context": "text"}, {**INPUTS, "context": ["text"]}):
        with pytest.raises(RequestError, match="context"):
            chain.invoke(inputs)
    twice = ChatPromptTemplate([("human", "{context} {context} {input}")])
    with pytest.raises(RequestError, match="once, not 2 times"):
        create_voices_chain(chat, twice).invoke(INPUTS)
    for arguments in ({"place": "x"}, {"score_key": "x"}, {"document_weights": "equal"}):
        with pytest.raises(RequestError, match="documents"):
            chat.invoke(ASK, **arguments)


# ---- retrieval


async def test_other_retrievers_and_streams(chat):
    retriever = RunnableLambda(itemgetter("passages"))
    chain = create_voices_retrieval_chain(retriever, create_voices_chain(chat, PROMPT, output_parser=StrOutputParser()))
    inputs = {"input": ASK, "passages": DOCUMENTS}
    parts = [part async for part in chain.astream(inputs)]
    assert "".join(part.get("answer", "") for part in parts) == chain.invoke(inputs)["answer"]
    assert parts[1] == {"context": DOCUMENTS}


# ---- the models


def test_structured_answers_from_documents(chat):
    class Place(BaseModel):
        """Where something is."""

        town: str = Field(max_length=12)

    structured = chat.with_structured_output(Place)
    assert isinstance(structured.invoke("{document} " + ASK, documents=DOCUMENTS, max_tokens=100), Place)
