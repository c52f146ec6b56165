"""Retrieval question answering in LlamaIndex.

Documents -> splitter -> BM25 retriever -> query engine -> ensemble -> streamed answer with its source. Runs on the
embedded models; ``--models`` takes folders or hub names of others.
"""

from __future__ import annotations

from llama_index.core import Document, QueryBundle, get_response_synthesizer
from llama_index.core.base.base_retriever import BaseRetriever
from llama_index.core.base.llms.types import ChatMessage, MessageRole
from llama_index.core.node_parser import SentenceSplitter
from llama_index.core.prompts import ChatPromptTemplate
from llama_index.core.query_engine import RetrieverQueryEngine
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore
from retrieval import SYSTEM, Bm25, arguments, questions, read_documents, source_of
from transformers.utils import logging as transformers_logging

from gac_core import Ensemble
from gac_llamaindex import GaCLLM

QA_TEMPLATE = ChatPromptTemplate(
    [
        ChatMessage(role=MessageRole.SYSTEM, content=SYSTEM),
        ChatMessage(role=MessageRole.USER, content="Passages:\n\n{context_str}\n\nQuestion: {query_str}"),
    ]
)


class Bm25Retriever(BaseRetriever):
    """A LlamaIndex retriever over BM25."""

    def __init__(self, nodes: list[BaseNode], k: int) -> None:
        super().__init__()
        self._nodes = nodes
        self._index = Bm25([node.get_content(MetadataMode.NONE) for node in nodes])
        self._k = k

    def _retrieve(self, query_bundle: QueryBundle) -> list[NodeWithScore]:
        return [NodeWithScore(node=self._nodes[i]) for i in self._index.search(query_bundle.query_str, self._k)]


def build_engine(llm: GaCLLM, texts: dict[str, str], passages: int) -> RetrieverQueryEngine:
    """Builds a streaming query engine over texts by file name."""
    # Paragraphs are passages; long ones are split at sentences.
    documents = [
        Document(
            text=paragraph,
            metadata={"source": name},
            excluded_llm_metadata_keys=["source"],
            excluded_embed_metadata_keys=["source"],
        )
        for name, text in texts.items()
        for paragraph in text.split("\n\n")
        if paragraph.strip()
    ]
    nodes = SentenceSplitter(chunk_size=256, chunk_overlap=0).get_nodes_from_documents(documents)
    synthesizer = get_response_synthesizer(llm=llm, text_qa_template=QA_TEMPLATE, streaming=True)
    return RetrieverQueryEngine(Bm25Retriever(nodes, passages), synthesizer)


def main() -> None:
    """Asks every question and prints answers with their sources."""
    args = arguments(__doc__ or "")
    transformers_logging.disable_progress_bar()
    with Ensemble.load(args.models, weights=args.weights, dtype=args.dtype) as ensemble:
        llm = GaCLLM(ensemble=ensemble, threshold=args.threshold, max_tokens=args.max_tokens)
        engine = build_engine(llm, read_documents(args.documents), args.passages)
        for question in questions(args.question, args.documents):
            print(f"Q: {question.text}\n   ", end="")
            response = engine.query(question.text)
            text = ""
            for piece in response.response_gen:
                text += piece
                print(piece, end="", flush=True)
            nodes = response.source_nodes
            found = source_of(text, question.text, [node.get_content(MetadataMode.NONE) for node in nodes])
            print(f"   (source: {'none' if found is None else nodes[found].metadata['source']})")


if __name__ == "__main__":
    main()
