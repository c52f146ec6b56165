"""Retrieval question answering in LlamaIndex: MiniLM embeddings, Chroma, an ensemble with a threshold, and sources.

The gain of this ensemble was measured in LangChain on the same passages, questions and prompts: none
(`rag_chroma_langchain.py`: F1 -0.5 points against its best member, 95%: -1.8 to +0.2, 28 questions).

Needs ``pip install 'gac-ensemble[llamaindex]' llama-index-embeddings-huggingface llama-index-vector-stores-chroma``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

import chromadb
from chromadb.config import Settings
from common import Example, Solved, Task, parser, run
from llama_index.core import StorageContext, VectorStoreIndex
from llama_index.core.llms import ChatMessage
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.schema import TextNode
from llama_index.embeddings.huggingface import HuggingFaceEmbedding
from llama_index.vector_stores.chroma import ChromaVectorStore
from passages import ASK, INSTRUCTION, SHOTS, passages_and_tasks
from recording import recorded

from gac_core import Ensemble
from gac_core.evaluation.metrics import f1
from gac_llamaindex import GaCLLM


def build_index(texts: list[str], embeddings: str, name: str = "passages") -> VectorStoreIndex:
    """Embeds the passages and indexes them in memory, in a collection of their own."""
    client = chromadb.EphemeralClient(Settings(anonymized_telemetry=False))
    store = ChromaVectorStore(chroma_collection=client.create_collection(name, get_or_create=True))
    nodes = [TextNode(text=text, metadata={"passage": number}) for number, text in enumerate(texts)]
    for node in nodes:
        # The number of a passage is for the reader: neither the embedding nor the prompt has it.
        node.excluded_embed_metadata_keys = node.excluded_llm_metadata_keys = ["passage"]
    context = StorageContext.from_defaults(vector_store=store)
    return VectorStoreIndex(nodes, storage_context=context, embed_model=HuggingFaceEmbedding(embeddings))


def build_prompt(instruction: str = INSTRUCTION, shots: Sequence[tuple[str, str, str]] = SHOTS) -> ChatPromptTemplate:
    """Returns the conversation: the instruction, solved questions, the question with its passages."""
    turns = [ChatMessage(instruction, role="system")]
    for passage, question, answer in shots:
        turns.append(ChatMessage(ASK.format(context=passage, question=question), role="user"))
        turns.append(ChatMessage(answer, role="assistant"))
    ask = ASK.format(context="{context_str}", question="{query_str}")
    return ChatPromptTemplate([*turns, ChatMessage(ask, role="user")])


def solve(index: VectorStoreIndex, llm: GaCLLM, task: Task) -> Solved:
    """Asks the query engine, which retrieves two passages, and names the sources."""
    engine = index.as_query_engine(llm=llm, similarity_top_k=2, text_qa_template=build_prompt())
    with recorded() as calls:
        response = engine.query(task.question)
    sources = "sources: " + ", ".join(f"passage {node.metadata['passage']}" for node in response.source_nodes)
    return Solved(str(response), max(f1(str(response), answer) for answer in task.answers), calls, [sources])


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on the passages and questions of ``args.data``; the score is F1 over words."""
    texts, tasks = passages_and_tasks(args.data)
    index = build_index(texts, args.embeddings)
    return Example(partial(GaCLLM, ensemble=ensemble, max_tokens=24), partial(solve, index), tasks)


if __name__ == "__main__":
    run(parser(__doc__, weights=(0, 2, 1), threshold=0.7).parse_args(), build)
