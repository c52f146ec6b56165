"""A chain that retrieves documents with their scores and answers from them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from langchain_core.callbacks import AsyncCallbackManagerForRetrieverRun, CallbackManagerForRetrieverRun
from langchain_core.documents import Document
from langchain_core.retrievers import BaseRetriever
from langchain_core.runnables import Runnable, RunnableLambda, RunnablePassthrough
from langchain_core.vectorstores import InMemoryVectorStore, VectorStoreRetriever

from gac_langchain.documents import SCORE_KEYS


def create_voices_retrieval_chain(
    retriever: BaseRetriever | Runnable[dict[str, Any], list[Document]], chain: Runnable[dict[str, Any], Any]
) -> Runnable[dict[str, Any], dict[str, Any]]:
    """Returns a chain that retrieves documents and answers from them; called as ``create_retrieval_chain``.

    The documents of a vector store's retriever that searches by similarity get their scores as ``relevance_score`` in
    their metadata, which become their weights. Documents of other retrievers have the scores that are in their metadata
    (`create_voices_chain`), and equal weights without any.

    Args:
        retriever: A retriever, which gets the inputs' ``input``, or a runnable that gets all inputs.
        chain: Answers from the documents: what `create_voices_chain` returns.

    Returns:
        A runnable of a mapping with ``input`` and the other variables of the prompt, that returns it with the documents
        as ``context`` and the answer as ``answer``.
    """
    found: Runnable[dict[str, Any], list[Document]]
    if isinstance(retriever, BaseRetriever):
        found = RunnableLambda(_query).with_config(run_name="query") | with_scores(retriever)
    else:
        found = retriever
    retrieved = RunnablePassthrough.assign(context=found.with_config(run_name="retrieve_documents"))
    return retrieved.assign(answer=chain).with_config(run_name="voices_retrieval_chain")


def _query(inputs: Mapping[str, Any]) -> str:
    query: str = inputs["input"]
    return query


def with_scores(retriever: BaseRetriever) -> BaseRetriever:
    """Returns a retriever whose documents have their scores, where its store knows them; else the retriever itself."""
    if type(retriever) is not VectorStoreRetriever:
        return retriever
    fields = {name: getattr(retriever, name) for name in retriever.model_fields_set}
    return ScoredRetriever(**{**fields, "name": retriever.get_name()})


class ScoredRetriever(VectorStoreRetriever):
    """A vector store's retriever whose documents have their relevance scores in their metadata.

    A store without relevance scores, and a search by ``"mmr"``, gives the documents as they are.
    """

    def _get_relevant_documents(
        self, query: str, *, run_manager: CallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        given = {**self.search_kwargs, **kwargs}
        if self.search_type != "mmr":
            try:
                if isinstance(self.vectorstore, InMemoryVectorStore) and self.search_type == "similarity":
                    # Its scores are cosine similarities already.
                    return _scored(self.vectorstore.similarity_search_with_score(query, **given))
                return _scored(self.vectorstore.similarity_search_with_relevance_scores(query, **given))
            except NotImplementedError:
                pass
        return super()._get_relevant_documents(query, run_manager=run_manager, **kwargs)

    async def _aget_relevant_documents(
        self, query: str, *, run_manager: AsyncCallbackManagerForRetrieverRun, **kwargs: Any
    ) -> list[Document]:
        given = {**self.search_kwargs, **kwargs}
        if self.search_type != "mmr":
            try:
                if isinstance(self.vectorstore, InMemoryVectorStore) and self.search_type == "similarity":
                    return _scored(await self.vectorstore.asimilarity_search_with_score(query, **given))
                return _scored(await self.vectorstore.asimilarity_search_with_relevance_scores(query, **given))
            except NotImplementedError:
                pass
        return await super()._aget_relevant_documents(query, run_manager=run_manager, **kwargs)


def _scored(found: list[tuple[Document, float]]) -> list[Document]:
    """Returns copies of documents with their scores in their metadata."""
    return [
        document.model_copy(update={"metadata": {**document.metadata, SCORE_KEYS[0]: float(score)}})
        for document, score in found
    ]
