"""Conversational retrieval in LangChain: a vector store, follow-up questions with the history, sources.

The vector store (Chroma) needs an embedding model: name one with ``--embeddings`` (any sentence-transformers model;
requires the extra ``vectors``). Without one, passages are found by BM25. The embedded models answer from passages but
are not trained on conversations, so a follow-up question must name its subject; with ``--models`` it need not.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from langchain_core.documents import Document
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage
from langchain_core.prompts import ChatPromptTemplate, MessagesPlaceholder
from langchain_core.retrievers import BaseRetriever
from rag_langchain import build_retriever, join
from retrieval import SYSTEM, USER

from gac_langchain import ChatGaC

HERE = Path(__file__).parent
QUESTIONS = ["In which town is the Velgin Bridge?", "Who founded the Haldo Festival?"]


def retriever_of(folder: Path, embeddings: str | None, k: int) -> BaseRetriever:
    """A vector store's retriever if there is an embedding model, else BM25's."""
    lexical = build_retriever(folder, k)
    if embeddings is None:
        return lexical
    from chromadb.config import Settings
    from langchain_chroma import Chroma
    from langchain_huggingface import HuggingFaceEmbeddings

    store = Chroma.from_documents(
        lexical.documents,
        HuggingFaceEmbeddings(model_name=embeddings),
        client_settings=Settings(anonymized_telemetry=False),
    )
    return store.as_retriever(search_kwargs={"k": k})


def answer(chat: ChatGaC, retriever: BaseRetriever, history: list[BaseMessage], question: str) -> list[Document]:
    """Prints the answer to one question, adds both to the history, and returns the passages."""
    # The last question is part of the search, so that a follow-up finds what it goes on about.
    asked = [str(message.content) for message in history if isinstance(message, HumanMessage)][-1:]
    documents = retriever.invoke(" ".join([*asked, question]))
    prompt = ChatPromptTemplate.from_messages([SystemMessage(SYSTEM), MessagesPlaceholder("history"), ("human", USER)])
    text = ""
    for chunk in (prompt | chat).stream({"history": history, "context": join(documents), "question": question}):
        print(chunk.text, end="", flush=True)
        text += chunk.text
    print()
    history += [HumanMessage(question), AIMessage(text)]
    return documents


def main() -> None:
    """Asks the questions one after the other."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=[str(HERE / "models" / n) for n in ("ash", "birch", "cedar")])
    parser.add_argument("--documents", type=Path, default=HERE / "handbook")
    parser.add_argument("--embeddings", help="name or folder of a sentence-transformers model")
    parser.add_argument("--question", nargs="+", default=QUESTIONS)
    parser.add_argument("--passages", type=int, default=2)
    parser.add_argument("--max-tokens", type=int, default=32)
    args = parser.parse_args()
    chat = ChatGaC(models=args.models, dtype="float32", max_tokens=args.max_tokens)
    retriever = retriever_of(args.documents, args.embeddings, args.passages)
    history: list[BaseMessage] = []
    for question in args.question:
        print(f"Q: {question}\nA: ", end="")
        documents = answer(chat, retriever, history, question)
        print("   source:", ", ".join(dict.fromkeys(document.metadata["source"] for document in documents)))


if __name__ == "__main__":
    main()
