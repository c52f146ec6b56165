"""Chains and calls of LangChain that answer from documents: texts, citations, streams, and what is passed on."""

from __future__ import annotations

from operator import itemgetter

import numpy as np
import pytest
from conftest import QUESTION
from langchain_core.caches import InMemoryCache
from langchain_core.documents import Document
from langchain_core.embeddings import DeterministicFakeEmbedding
from langchain_core.language_models import FakeListChatModel
from langchain_core.load import dumps, loads
from langchain_core.messages import AIMessage
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder, PromptTemplate
from langchain_core.runnables import RunnableLambda
from langchain_core.vectorstores import InMemoryVectorStore
from pydantic import BaseModel, Field

from gac_core import Document as VoiceDocument
from gac_core import (
    DocumentPrompt,
    RequestError,
)
from gac_langchain import ChatGaC, GaCLLM, create_voices_chain, create_voices_retrieval_chain

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


@pytest.fixture
def chat(ensemble):
    return ChatGaC(ensemble=ensemble, max_tokens=24)


@pytest.fixture
def chain(chat):
    return create_voices_chain(chat, PROMPT)


@pytest.fixture(scope="module")
def wanted(ensemble):
    """The answer of the ensemble itself."""
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": USER.replace("{input}", ASK)}]
    torno, velgin = (document.page_content for document in DOCUMENTS)
    documents = [VoiceDocument(torno, "torno", 2.0), VoiceDocument(velgin, "7", 1)]
    return ensemble.generate(DocumentPrompt(messages, documents, place="{context}"), max_tokens=24)


def sum_of(chunks):
    return sum(chunks[1:], chunks[0])


def notes(message):
    return [note for block in message.content_blocks for note in block.get("annotations", [])]


def assert_same(found, wanted):
    """Equal, up to rounding of numbers, ids of runs and measured times."""
    assert found.text == wanted.text
    assert [block.keys() for block in found.content] == [block.keys() for block in wanted.content]
    for one, other in zip(notes(found), notes(wanted), strict=True):
        assert one["extras"]["document"] == other["extras"]["document"]
        assert one["extras"]["share"] == pytest.approx(other["extras"]["share"], abs=1e-4)
        assert {**one, "extras": 0} == {**other, "extras": 0}
    assert found.usage_metadata["output_tokens"] == wanted.usage_metadata["output_tokens"]
    assert found.usage_metadata["input_tokens"] == wanted.usage_metadata["input_tokens"]
    assert found.response_metadata.keys() == wanted.response_metadata.keys()
    shares = wanted.response_metadata["document_shares"]
    assert found.response_metadata["document_shares"] == pytest.approx(shares, abs=1e-4)


@pytest.mark.parametrize("given", ["text", {"text": "x"}, [3], [{"body": "x"}], 3])
def test_other_documents_are_refused(chat, given):
    with pytest.raises(RequestError, match="document"):
        chat.invoke("{document} Where?", documents=given)


# ---- the chain


def test_the_chain_answers_as_the_ensemble_does(chain, wanted):
    message = chain.invoke(INPUTS)
    assert message.text == wanted.text
    assert message.response_metadata["document_shares"] == pytest.approx(dict(wanted.document_shares), abs=1e-4)
    assert message.response_metadata["doubt"]["share"] == pytest.approx(wanted.doubt.share, abs=1e-4)
    (note,) = notes(message)
    assert note["extras"]["share"] == pytest.approx(wanted.citations[0].share, abs=1e-4)
    assert note["type"] == "citation"
    assert message.text[note["start_index"] : note["end_index"]] == wanted.citations[0].text
    assert (note["cited_text"], note["title"]) == (DOCUMENTS[0].page_content, "bridges.md")
    assert "url" not in note
    assert note["extras"]["document"] == "torno"
    usage = message.usage_metadata
    assert usage["total_tokens"] == usage["input_tokens"] + usage["output_tokens"]
    assert usage["output_tokens"] == wanted.usage.completion_tokens


async def test_streams_add_up_to_the_message(chain):
    whole = chain.invoke(INPUTS)
    chunks = list(chain.stream(INPUTS))
    assert len(chunks) > 2
    assert_same(sum_of(chunks), whole)
    assert_same(sum_of([chunk async for chunk in chain.astream(INPUTS)]), whole)
    assert_same(await chain.ainvoke(INPUTS), whole)
    events = [event async for event in chain.astream_events(INPUTS, version="v2")]
    assert_same(next(e["data"]["output"] for e in events if e["event"] == "on_chat_model_end"), whole)


def test_batches_and_the_order_of_documents(chain):
    one, other = chain.batch([INPUTS, {**INPUTS, "context": DOCUMENTS[::-1]}])
    assert_same(one, other)


@pytest.mark.filterwarnings("ignore:The function `loads` is in beta")
def test_messages_with_citations_are_stored_and_passed_on(chat, chain):
    message = chain.invoke(INPUTS)
    assert loads(dumps(message), allowed_objects="messages") == message
    talk = ChatPromptTemplate([("system", SYSTEM), MessagesPlaceholder("history"), ("human", USER)])
    plain = {"history": [("human", ASK), AIMessage(message.text)], **INPUTS}
    follow = create_voices_chain(chat, talk)
    assert follow.invoke({**plain, "history": [("human", ASK), message]}).text == follow.invoke(plain).text


def test_arguments_configurations_and_parsers(chat, chain):
    alone = create_voices_chain(chat.bind(gate="ash", threshold=0.0), PROMPT).invoke(INPUTS)
    assert alone.response_metadata["gac"]["steps_ensembled"] == 0
    configured = chain.with_config(configurable={"gac_gate": "ash", "gac_threshold": 0.0}).invoke(INPUTS)
    assert_same(configured, alone)
    parsed = create_voices_chain(chat, PROMPT, output_parser=StrOutputParser())
    assert parsed.invoke(INPUTS) == "".join(parsed.stream(INPUTS)) == chain.invoke(INPUTS).text


def test_a_template_of_documents_and_other_names(chat, chain):
    named = ChatPromptTemplate([("system", SYSTEM), ("human", USER.replace("context", "passages"))])
    template = PromptTemplate.from_template("{page_content}")
    other = create_voices_chain(chat, named, document_prompt=template, document_variable_name="passages")
    assert_same(other.invoke({"passages": DOCUMENTS, "input": ASK}), chain.invoke(INPUTS))
    titled = create_voices_chain(chat, PROMPT, document_prompt=PromptTemplate.from_template("{source}: {page_content}"))
    assert notes(titled.invoke(INPUTS))[0]["cited_text"] == f"bridges.md: {DOCUMENTS[0].page_content}"


def test_a_question_may_contain_the_place(chain):
    asked = chain.invoke({**INPUTS, "input": ASK + " {document}"})
    assert notes(asked)


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
    with pytest.raises(RequestError, match="lack variables of the prompt: input"):
        chain.invoke({"context": DOCUMENTS})
    twice = ChatPromptTemplate([("human", "{context} {context} {input}")])
    with pytest.raises(RequestError, match="once, not 2 times"):
        create_voices_chain(chat, twice).invoke(INPUTS)
    for arguments in ({"place": "x"}, {"score_key": "x"}, {"document_weights": "equal"}):
        with pytest.raises(RequestError, match="documents"):
            chat.invoke(ASK, **arguments)


# ---- retrieval


def test_a_vector_store_gives_its_scores(chat):
    store = InMemoryVectorStore(DeterministicFakeEmbedding(size=8))
    store.add_documents([Document(document.page_content, metadata={"source": "x"}) for document in DOCUMENTS])
    chain = create_voices_retrieval_chain(store.as_retriever(search_kwargs={"k": 2}), create_voices_chain(chat, PROMPT))
    found = chain.invoke({"input": DOCUMENTS[0].page_content})
    assert found.keys() == {"input", "context", "answer"}
    scores = [document.metadata["relevance_score"] for document in found["context"]]
    assert scores[0] == pytest.approx(1)
    assert scores[1] < 1
    assert "relevance_score" not in store.similarity_search(ASK)[0].metadata
    shares = found["answer"].response_metadata["document_shares"]
    assert set(shares) == {document.id for document in found["context"]}


async def test_other_retrievers_and_streams(chat):
    retriever = RunnableLambda(itemgetter("passages"))
    chain = create_voices_retrieval_chain(retriever, create_voices_chain(chat, PROMPT, output_parser=StrOutputParser()))
    inputs = {"input": ASK, "passages": DOCUMENTS}
    parts = [part async for part in chain.astream(inputs)]
    assert "".join(part.get("answer", "") for part in parts) == chain.invoke(inputs)["answer"]
    assert parts[1] == {"context": DOCUMENTS}


# ---- the models


def test_calls_of_the_chat_model(chat, chain):
    asked = PROMPT.invoke({"context": "{document}", "input": ASK})
    assert_same(chat.invoke(asked, documents=DOCUMENTS), chain.invoke(INPUTS))
    with pytest.raises(RequestError, match="once, not 0 times"):
        chat.invoke(ASK, documents=DOCUMENTS)
    several = chat.generate([asked.to_messages()], documents=DOCUMENTS, n=2, temperature=1.0, seed=3).generations[0]
    assert [bool(notes(each.message)) for each in several] == [True, True]


def test_structured_answers_from_documents(chat):
    class Place(BaseModel):
        """Where something is."""

        town: str = Field(max_length=12)

    structured = chat.with_structured_output(Place)
    assert isinstance(structured.invoke("{document} " + ASK, documents=DOCUMENTS, max_tokens=100), Place)


def test_the_text_model(ensemble):
    text = "Passages:\n\n{document}\n\nQuestion: " + ASK + "\n"
    llm = GaCLLM(ensemble=ensemble, max_tokens=12, cache=InMemoryCache())
    want = ensemble.generate(text, documents=[document.page_content for document in DOCUMENTS], max_tokens=12).text
    plain = [Document(document.page_content) for document in DOCUMENTS]
    assert llm.invoke(text, documents=plain) == want == "".join(llm.stream(text, documents=plain))
    other = llm.invoke(text, documents=[Document("Nothing is known.")])
    assert llm.batch([text], documents=plain) == [want]
    info = llm.generate([text], documents=plain).generations[0][0].generation_info
    assert set(info["document_shares"]) == {"1", "2"}
    assert llm.invoke(text, documents=[Document("Nothing is known.")]) == other
    prompt = PromptTemplate.from_template("Passages:\n\n{context}\n\nQuestion: {input}\n")
    assert create_voices_chain(llm, prompt).invoke({"context": plain, "input": ASK}) == want


# ---- warming


async def test_warm_documents_are_reused(chat):
    fresh = [Document(f"The Omber Tower in Dask has {number} steps.") for number in (311, 507)]
    history = MessagesPlaceholder("history")
    talk = ChatPromptTemplate([("system", SYSTEM), ("human", USER), history, ("human", "{more}")])
    chain = create_voices_chain(chat, talk)
    assert chain.warm(fresh[:1]).documents == ("1",)
    await chain.awarm(fresh[1:])
    values = {"input": "How many?", "history": [AIMessage("Which tower?")], "more": "The Omber Tower."}
    message = chain.invoke({"context": fresh, **values})
    # The prior reads no document.
    assert message.usage_metadata["input_token_details"]["cache_read"] > 0
    again = chain.warm(fresh, pin=False)
    assert all(member.reused_tokens > 0 for member in again.members.values())


def test_the_text_model_warms_documents(ensemble):
    llm, prompt = GaCLLM(ensemble=ensemble), PromptTemplate.from_template("{context}\n\n{input}")
    chain = create_voices_chain(llm.bind(max_tokens=2), prompt)
    scored = Document("The Nalda Tower has a bell.", id="bell", metadata={"score": 1})
    fresh = [Document("The Nalda Tower in Fenk has 207 steps.", id="nalda"), scored]
    assert set(chain.warm(fresh).documents) == {"nalda", "bell"}
    chain.warm(fresh, pin=False)
    other = create_voices_chain(RunnableLambda(lambda value: value), prompt)
    with pytest.raises(RequestError, match="a chain of RunnableLambda cannot warm documents"):
        other.warm(fresh)


def test_variables_before_the_documents_need_values(chat):
    talk = ChatPromptTemplate([("system", "{style} <input>"), MessagesPlaceholder("history"), ("human", USER)])
    chain = create_voices_chain(chat, talk)
    with pytest.raises(RequestError, match="before the documents have no value: history, style;"):
        chain.warm(DOCUMENTS)
    with pytest.raises(RequestError, match="no value: history;"):
        chain.warm(DOCUMENTS, {"style": "Be brief."})
    chain.warm(DOCUMENTS, {"style": "Be brief.", "history": []})
    chain.warm(DOCUMENTS, {"style": "Be brief.", "history": []}, pin=False)
