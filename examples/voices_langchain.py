"""Retrieval question answering in LangChain in which each passage is read in a voice of its own.

Documents -> splitter -> BM25 retriever with scores -> `create_voices_retrieval_chain` -> streamed answer, with the
passages that carried it, next to the answer from one prompt with all passages. The passages are read before the first
question (`VoicesChain.warm`), so that answers begin sooner. Runs on the embedded models; ``--models`` takes folders or
hub names of others.
"""

from __future__ import annotations

import time
from typing import Any

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pydantic import ConfigDict
from retrieval import SYSTEM, Bm25, arguments, questions, read_documents
from rich.console import Console
from transformers.utils import logging as transformers_logging

from gac_core import Ensemble
from gac_langchain import ChatGaC, create_voices_chain, create_voices_retrieval_chain

# The passage stands before the question, so that its KV cache is reused.
USER = "Passages:\n\n{context}\n\nQuestion: {input}"


class ScoringRetriever(BaseRetriever):
    """A retriever over BM25 that writes scores to the metadata of its documents."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    documents: list[Document]
    index: Bm25
    k: int

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        found = [(self.documents[index], score) for index, score in self.index.scored(query, self.k)]
        return [each.model_copy(update={"metadata": {**each.metadata, "score": score}}) for each, score in found]


def stream(chain: Any, question: str, console: Console) -> AIMessageChunk:
    """Prints an answer as it comes and returns the message."""
    message = AIMessageChunk([])
    for part in chain.stream({"input": question}):
        if "answer" in part:
            console.print(part["answer"].text, end="", markup=False, highlight=False)
            message += part["answer"]
    console.print()
    return message


def show(message: AIMessageChunk, console: Console) -> None:
    """Prints the citations of an answer, and how sure it is."""
    for block in message.content_blocks:
        for citation in block.get("annotations", []):
            share = citation["extras"]["share"]
            console.print(f"   source:   {citation['title']} ({share:.0%}): {citation['cited_text']}", style="dim")
    # What the passage adds to what the models know without it, for each token; little if it does not have the answer.
    console.print(f"   lift:     {message.response_metadata['doubt']['lift']:+.2f} nats", style="dim")


def main() -> None:
    """Asks every question and prints answers and sources."""
    args = arguments(__doc__ or "", threshold=None)
    console = Console()
    transformers_logging.disable_progress_bar()
    splitter = RecursiveCharacterTextSplitter(chunk_size=240, chunk_overlap=0)
    texts = [Document(text, metadata={"source": name}) for name, text in read_documents(args.documents).items()]
    passages = splitter.split_documents(texts)
    retriever = ScoringRetriever(documents=passages, index=Bm25([p.page_content for p in passages]), k=args.passages)
    prompt = ChatPromptTemplate([("system", SYSTEM), ("human", USER)])
    with Ensemble.load(args.models, weights=args.weights, dtype=args.dtype) as ensemble:
        chat = ChatGaC(ensemble=ensemble, max_tokens=args.max_tokens, threshold=None)
        voices = create_voices_chain(chat, prompt)
        chain = create_voices_retrieval_chain(retriever, voices)
        began = time.perf_counter()
        voices.warm(passages)
        console.print(f"{len(passages)} passages read in {time.perf_counter() - began:.1f} s\n")
        for question in questions(args.question, args.documents):
            console.print(f"[bold]Q: {question.text}[/bold]")
            console.print("   voices:   ", end="")
            show(stream(chain, question.text, console), console)
            context = "\n\n".join(document.page_content for document in retriever.invoke(question.text))
            together = (prompt | chat | StrOutputParser()).invoke({"context": context, "input": question.text})
            console.print(f"   together: {together}", markup=False, highlight=False)
            if question.answer is not None:
                console.print(f"   expected: {question.answer}\n", style="dim")


if __name__ == "__main__":
    main()
