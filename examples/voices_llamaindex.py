"""Retrieval question answering in LlamaIndex in which each passage is read in a voice of its own.

Documents -> splitter -> BM25 retriever with scores -> query engine with `VoicesSynthesizer` -> streamed answer, with
the passages that carried it and how sure it is. The passages are read before the first question
(`VoicesSynthesizer.warm`), so that answers begin sooner. Runs on the embedded models; ``--models`` takes folders or hub
names of others.
"""

from __future__ import annotations

import time

from llama_index.core import Document, QueryBundle
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage
from llama_index.core.base.response.schema import StreamingResponse
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, NodeWithScore
from retrieval import SYSTEM, Bm25, arguments, questions, read_documents
from transformers.utils import logging as transformers_logging

from gac_core import Ensemble
from gac_llamaindex import GaCLLM, VoicesSynthesizer

# The passage precedes the question, so that its KV cache is reused.
TEMPLATE = ChatPromptTemplate(
    [
        ChatMessage(SYSTEM, role="system"),
        ChatMessage("Passages:\n\n{context_str}\n\nQuestion: {query_str}", role="user"),
    ]
)


class ScoringRetriever(BaseRetriever):
    """A retriever over BM25 with scores."""

    def __init__(self, nodes: list[BaseNode], k: int) -> None:
        super().__init__()
        self._nodes = nodes
        self._index = Bm25([node.get_content() for node in nodes])
        self._k = k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        found = self._index.scored(query_bundle.query_str, self._k)
        return [NodeWithScore(node=self._nodes[index], score=score) for index, score in found]


def split(texts: dict[str, str]) -> list[BaseNode]:
    """Returns the paragraphs of texts by file name; long ones are split at sentences."""
    documents = [
        Document(text=paragraph, metadata={"source": name}, excluded_llm_metadata_keys=["source"])
        for name, text in texts.items()
        for paragraph in text.split("\n\n")
        if paragraph.strip()
    ]
    return SentenceSplitter(chunk_size=256, chunk_overlap=0).get_nodes_from_documents(documents)


def show(response: StreamingResponse) -> None:
    """Prints an answer as it comes, its sources, and how sure it is."""
    response.print_response_stream()
    print()
    sources = {each.node_id: each.metadata["source"] for each in response.source_nodes}
    for citation in response.metadata["citations"]:
        print(f"   source: {sources[citation['document']]} ({citation['share']:.0%}): {citation['text'].strip()}")
    agreement = response.metadata["doubt"]["agreement"]
    if agreement is not None:  # None of a single passage
        print(f"   doubt: passages agree on {agreement:.0%} of the tokens")


def main() -> None:
    """Asks every question and prints answers, sources and doubt."""
    args = arguments(__doc__ or "", threshold=None)
    transformers_logging.disable_progress_bar()
    nodes = split(read_documents(args.documents))
    with Ensemble.load(args.models, weights=args.weights, dtype=args.dtype) as ensemble:
        llm = GaCLLM(ensemble=ensemble, threshold=None, max_tokens=args.max_tokens)
        synthesizer = VoicesSynthesizer(llm, text_qa_template=TEMPLATE, streaming=True)
        engine = RetrieverQueryEngine(ScoringRetriever(nodes, args.passages), synthesizer)
        began = time.perf_counter()
        synthesizer.warm(nodes)
        print(f"{len(nodes)} passages read in {time.perf_counter() - began:.1f} s")
        for question in questions(args.question, args.documents):
            print(f"Q: {question.text}\n   ", end="")
            show(engine.query(question.text))
            if question.answer is not None:
                print(f"   expected: {question.answer}")


if __name__ == "__main__":
    main()
