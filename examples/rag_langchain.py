"""Retrieval question answering in LangChain.

Documents -> splitter -> BM25 retriever -> prompt -> ensemble -> streamed answer with its source, next to the answers of
each member alone. Runs on the embedded models; ``--models`` takes folders or hub names of others.
"""

from __future__ import annotations

import time
from pathlib import Path

from langchain_core.callbacks import CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.messages import AIMessageChunk
from langchain_core.output_parsers import StrOutputParser
from langchain_core.prompts import ChatPromptTemplate
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import RunnableLambda, RunnablePassthrough
from langchain_text_splitters import RecursiveCharacterTextSplitter
from pydantic import ConfigDict
from retrieval import SYSTEM, USER, Bm25, Question, arguments, questions, read_documents, source_of
from rich.console import Console
from rich.table import Table
from transformers.utils import logging as transformers_logging

from gac_core import Ensemble
from gac_langchain import ChatGaC


class Bm25Retriever(BaseRetriever):
    """A LangChain retriever over BM25."""

    model_config = ConfigDict(arbitrary_types_allowed=True)
    documents: list[Document]
    index: Bm25
    k: int = 3

    def _get_relevant_documents(self, query: str, *, run_manager: CallbackManagerForRetrieverRun) -> list[Document]:
        return [self.documents[i] for i in self.index.search(query, self.k)]


def build_retriever(folder: Path, k: int) -> Bm25Retriever:
    """Splits the documents of a folder into passages and indexes them."""
    splitter = RecursiveCharacterTextSplitter(chunk_size=240, chunk_overlap=0)
    documents = [Document(text, metadata={"source": name}) for name, text in read_documents(folder).items()]
    passages = splitter.split_documents(documents)
    return Bm25Retriever(documents=passages, index=Bm25([p.page_content for p in passages]), k=k)


def join(documents: list[Document]) -> str:
    """Returns the passages as one text."""
    return "\n\n".join(document.page_content for document in documents)


def main() -> None:
    """Asks every question and prints answers, sources and costs."""
    args = arguments(__doc__ or "")
    console = Console()
    transformers_logging.disable_progress_bar()
    ensemble = Ensemble.load(args.models, weights=args.weights, dtype=args.dtype)
    chat = ChatGaC(ensemble=ensemble, max_tokens=args.max_tokens)
    retriever = build_retriever(args.documents, args.passages)
    prompt = ChatPromptTemplate([("system", SYSTEM), ("human", USER)])
    context = RunnableLambda(join)
    console.print(
        f"ensemble of {', '.join(ensemble.names)}: union of {ensemble.union_size:,} tokens, gate {ensemble.gate}\n"
    )
    right: dict[str, int] = {}
    steps = {"every step": [0, 0], f"threshold {args.threshold}": [0, 0]}
    asked = questions(args.question, args.documents)
    began = time.perf_counter()
    for question in asked:
        documents = retriever.invoke(question.text)
        console.print(f"[bold]Q: {question.text}[/bold]")
        inputs = {"context": documents, "question": question.text}
        fill = RunnablePassthrough.assign(context=lambda values: context.invoke(values["context"])) | prompt
        console.print("   ensemble: ", end="")
        answer = stream(fill | chat.bind(threshold=None), inputs, steps["every step"], console)
        found = source_of(answer, question.text, [document.page_content for document in documents])
        source = "none" if found is None else documents[found].metadata["source"]
        console.print(f"   source:   {source}", style="dim")
        answers = {"ensemble": answer}
        thresholded = f"threshold {args.threshold}"
        result = (fill | chat.bind(threshold=args.threshold)).invoke(inputs)
        count(result.response_metadata["gac"], steps[thresholded])
        answers[thresholded] = result.content
        for name in ensemble.names:
            # A gate that may always decide alone is this member by itself.
            alone = fill | chat.bind(gate=name, threshold=0.0) | StrOutputParser()
            answers[name + " alone"] = alone.invoke(inputs)
        show(console, question, answers, right)
    if any(question.answer is not None for question in asked):
        summary(console, right, steps, len(asked), time.perf_counter() - began)
    ensemble.close()


def stream(chain: object, inputs: dict[str, object], counts: list[int], console: Console) -> str:
    """Prints an answer as it comes and returns it."""
    text = ""
    for chunk in chain.stream(inputs):  # type: ignore[attr-defined]
        assert isinstance(chunk, AIMessageChunk)
        text += str(chunk.content)
        console.print(str(chunk.content), end="", markup=False, highlight=False)
        if "gac" in chunk.response_metadata:
            count(chunk.response_metadata["gac"], counts)
    console.print()
    return text


def count(metadata: dict[str, int], counts: list[int]) -> None:
    """Adds one answer's steps to a sum."""
    counts[0] += metadata["steps"]
    counts[1] += metadata["steps_ensembled"]


def show(console: Console, question: Question, answers: dict[str, str], right: dict[str, int]) -> None:
    """Prints one question's other answers and counts the right ones."""
    for name, answer in answers.items():
        hit = question.answer is not None and same(answer, question.answer)
        right[name] = right.get(name, 0) + hit
        mark = "" if question.answer is None else " [green]right[/green]" if hit else " [red]wrong[/red]"
        if name != "ensemble":
            console.print(f"   {name + ':':<18}", end="")
            console.print(answer, end="", markup=False, highlight=False)
            console.print(mark)
    if question.answer is not None:
        console.print(f"   {'expected:':<18}{question.answer}\n", style="dim")


def same(answer: str, gold: str) -> bool:
    """Whether two answers are the same but for case and a full stop."""
    return answer.strip().rstrip(".").casefold() == gold.strip().rstrip(".").casefold()


def summary(console: Console, right: dict[str, int], steps: dict[str, list[int]], asked: int, seconds: float) -> None:
    """Prints right answers and the share of steps that were ensembled."""
    table = Table("answered by", "right answers", "steps", "steps ensembled")
    names = {"ensemble": "every step"}
    for name, hits in right.items():
        total, ensembled = steps.get(names.get(name, name), [0, 0])
        share = f"{ensembled / total:.0%}" if total else ""
        label = f"{name} (every step)" if name == "ensemble" else name
        table.add_row(label, f"{hits} of {asked}", str(total or ""), share)
    console.print(table)
    console.print(f"{seconds:.1f} s for {asked} questions", style="dim")


if __name__ == "__main__":
    main()
