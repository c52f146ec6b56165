"""Retrieval question answering in LangChain: MiniLM embeddings, Chroma, an ensemble with a threshold, and sources.

Measured (docs/real-examples.md): no gain. With SmolLM2-135M-Instruct (weight 0), Qwen2.5-Coder-0.5B-Instruct (2, gate,
threshold 0.7) and Gemma-3-270M (1), 28 questions of SQuAD, F1 33.0, and 33.5 of Qwen alone, the best member: -0.5
points (95%: -1.8 to +0.2).

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
from gac_langchain import ChatGaC


def build_store(texts: list[str], embeddings: str) -> Chroma:
    """Embeds the passages and indexes them in memory."""
    return Chroma.from_texts(
        texts,
        HuggingFaceEmbeddings(model_name=embeddings),
        metadatas=[{"passage": number} for number in range(len(texts))],
        client_settings=Settings(anonymized_telemetry=False),
    )


def build_prompt() -> ChatPromptTemplate:
    """Returns the conversation: the instruction, two solved questions, the question with its passages."""
    turns = [("system", INSTRUCTION)]
    for passage, question, answer in SHOTS:
        turns += [("human", ASK.format(context=passage, question=question)), ("ai", answer)]
    return ChatPromptTemplate([*turns, ("human", ASK)])


def solve(store: Chroma, chat: ChatGaC, task: Task) -> Solved:
    """Retrieves two passages, asks, and names the sources."""
    documents = store.similarity_search(task.question, k=2)
    chain: Any = build_prompt() | chat
    context = "\n\n".join(document.page_content for document in documents)
    message = chain.invoke({"context": context, "question": task.question})
    sources = "sources: " + ", ".join(f"passage {document.metadata['passage']}" for document in documents)
    score = max(f1(message.text, answer) for answer in task.answers)
    return Solved(message.text, score, [message.response_metadata["gac"]], [sources])


def build(args: argparse.Namespace, ensemble: Ensemble) -> Example:
    """Returns the example on the passages and questions of ``args.data``; the score is F1 over words."""
    texts, tasks = passages_and_tasks(args.data)
    store = build_store(texts, args.embeddings)
    return Example(partial(ChatGaC, ensemble=ensemble, max_tokens=24), partial(solve, store), tasks)


if __name__ == "__main__":
    run(parser(__doc__, weights=(0, 2, 1), threshold=0.7).parse_args(), build)
