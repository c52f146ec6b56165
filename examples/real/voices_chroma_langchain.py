"""Retrieval question answering in LangChain in which each passage is read in a voice of its own: MiniLM, Chroma.

The same passages, questions and models as in `rag_chroma_langchain.py`, whose prompt holds all passages.

Needs ``pip install 'gac-ensemble[langchain]' langchain-chroma langchain-huggingface sentence-transformers``.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

from chromadb.config import Settings
from common import Example, Solved, Task, parser, run
from langchain_chroma import Chroma
from langchain_core.prompts import ChatPromptTemplate
from langchain_huggingface import HuggingFaceEmbeddings
from passages import ASK, INSTRUCTION, SHOTS, passages_and_tasks

from gac_core import Ensemble
from gac_core.evaluation.metrics import f1
from gac_langchain import ChatGaC, create_voices_chain, create_voices_retrieval_chain

PASSAGES = 4


def build_store(texts: list[str], embeddings: str) -> Chroma:
    """Embeds the passages and indexes them in memory, by cosine similarity."""
    return Chroma.from_texts(
        texts,
        HuggingFaceEmbeddings(model_name=embeddings),
        metadatas=[{"title": f"passage {number}"} for number in range(len(texts))],
        collection_name="voices",
        # Relevance scores are between 0 and 1 for this one only.
        collection_metadata={"hnsw:space": "cosine"},
        client_settings=Settings(anonymized_telemetry=False),
    )


def build_prompt() -> ChatPromptTemplate:
    """Returns the conversation: the instruction, two solved questions, the question with a passage."""
    turns = [("system", INSTRUCTION)]
    for passage, question, answer in SHOTS:
        turns += [("human", ASK.format(context=passage, question=question)), ("ai", answer)]
    return ChatPromptTemplate([*turns, ("human", ASK.replace("{question}", "{input}"))])


def solve(store: Chroma, chat: ChatGaC, task: Task) -> Solved:
    """Retrieves passages, asks, and names the passage that carried the answer."""
    retriever = store.as_retriever(search_kwargs={"k": PASSAGES})
    chain: Any = create_voices_retrieval_chain(retriever, create_voices_chain(chat, build_prompt()))
    message = chain.invoke({"input": task.question})["answer"]
    cited = [note for block in message.content_blocks for note in block.get("annotations", [])]
    sources = "sources: " + ", ".join(f"{note['title']} ({note['extras']['share']:.0%})" for note in cited)
    # What the passage adds to what the models know without it, for each token; unknown where the gate decided alone.
    lift = message.response_metadata["doubt"]["lift"]
    told = "lift: unknown" if lift is None else f"lift: {lift:+.1f} nats"
    score = max(f1(message.text, answer) for answer in task.answers)
    return Solved(message.text, score, [message.response_metadata["gac"]], [sources, told])


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on the passages and questions of ``args.data``; the score is F1 over words."""
    texts, tasks = passages_and_tasks(args.data)
    store = build_store(texts, args.embeddings)
    return Example(partial(ChatGaC, ensemble=ensemble, max_tokens=24), partial(solve, store), tasks)


if __name__ == "__main__":
    run(parser(__doc__, weights=(0, 2, 1), threshold=None).parse_args(), build)
