"""GaCLLM on real instruction models in bfloat16: condensed questions and generated queries."""

from __future__ import annotations

import pytest
from lexical import LexicalEmbedding
from llama_index.core import Document, VectorStoreIndex
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.chat_engine import CondensePlusContextChatEngine
from llama_index.core.memory import ChatMemoryBuffer
from llama_index.core.retrievers import QueryFusionRetriever

from gac_llamaindex import GaCLLM

pytestmark = pytest.mark.real

DOCUMENTS = [
    "The Torno Bridge is the work of Melka Dorin. The bridge stands in Halkus. It was built in 1874.",
    "The Silver Inn stands in Marwin. Its keeper is Rufo Tann. It has nine rooms.",
]
HISTORY = [
    ChatMessage("Tell me about the Silver Inn."),
    ChatMessage("The Silver Inn stands in Marwin and has nine rooms.", role="assistant"),
]


@pytest.fixture(scope="module")
def qwen(real):
    with real.ensemble("qwen", dtype="bfloat16") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def both(real):
    with real.ensemble("qwen", "smollm2", dtype="bfloat16") as loaded:
        yield loaded


@pytest.fixture(scope="module")
def retriever():
    documents = [Document(text=text) for text in DOCUMENTS]
    index = VectorStoreIndex.from_documents(documents, embed_model=LexicalEmbedding())
    return index.as_retriever(similarity_top_k=1)


def test_a_follow_up_is_condensed_to_a_question_of_its_own(both, retriever):
    llm = GaCLLM(ensemble=both, max_tokens=24)
    memory = ChatMemoryBuffer.from_defaults(chat_history=list(HISTORY), llm=llm)
    engine = CondensePlusContextChatEngine.from_defaults(retriever, llm=llm, memory=memory)
    # As bare text it would begin with the space after the prompt's colon.
    assert engine._condense_question(HISTORY, "Who is its keeper?") == "Who is the keeper of the Silver Inn?"
    response = engine.chat("Who is its keeper?")
    assert [node.text for node in response.source_nodes] == [DOCUMENTS[1]]
    assert "Rufo Tann" in str(response)


def test_queries_are_generated_one_on_each_line(qwen, retriever):
    llm = GaCLLM(ensemble=qwen, max_tokens=40)
    fusion = QueryFusionRetriever([retriever], llm=llm, num_queries=3, use_async=False)
    queries = [bundle.query_str for bundle in fusion._get_queries("Which town does the Torno Bridge stand in?")]
    assert len(queries) == 2
    assert all("Torno Bridge" in query for query in queries)
    assert [node.text for node in fusion.retrieve("Which town does the Torno Bridge stand in?")] == [DOCUMENTS[0]]
