"""LlamaIndex's nodes as the documents of a request, and the responses whose sources they are."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator, Mapping, Sequence
from contextlib import aclosing, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from llama_index.core.base.response.schema import (
    RESPONSE_TYPE,
    AsyncStreamingResponse,
    PydanticResponse,
    Response,
    StreamingResponse,
)
from llama_index.core.bridge.pydantic import BaseModel
from llama_index.core.schema import BaseNode, MetadataMode, NodeWithScore

from gac_core import Document, RequestError, quote
from gac_llamaindex.responses import is_last
from gac_llamaindex.structured import Response as ModelResponse

Raw = Mapping[str, Any]


@dataclass(frozen=True)
class SourceNodes:
    """The nodes of a response.

    Attributes:
        by_id: Those that are documents of the request, by the documents' ids. The id is the node's; of nodes with one
            id and different texts the second has ``"#2"`` at its end, the third ``"#3"``. Of nodes with equal ids and
            texts one is left, with the largest score.
        additional: Those that were not read.
    """

    by_id: Mapping[str, NodeWithScore]
    additional: tuple[NodeWithScore, ...] = ()

    @classmethod
    def of(cls, nodes: Sequence[NodeWithScore], additional: Sequence[NodeWithScore] | None = None) -> SourceNodes:
        """Returns nodes as a retriever returns them.

        Raises:
            RequestError: A node has no text.
        """
        found: dict[str, NodeWithScore] = {}
        for node in nodes:
            text, name, number = _text(node), node.node_id, 1
            while name in found and _text(found[name]) != text:
                number += 1
                name = f"{node.node_id}#{number}"
            if name not in found or _rank(node) > _rank(found[name]):
                found[name] = node
        return cls(found, tuple(additional or ()))

    @property
    def documents(self) -> list[Document]:
        """The documents: text as language models see it (`MetadataMode.LLM`), id and score of each node."""
        return [Document(_text(node), name, node.score) for name, node in self.by_id.items()]

    # ---- responses

    def response(self, result: str | BaseModel, raw: Raw) -> Response | PydanticResponse:
        """Returns the response of a finished answer.

        Args:
            result: Its text, or its object.
            raw: Its metadata, as `gac_core.as_metadata` returns them.
        """
        nodes, metadata = self._with_shares(raw.get("document_shares", {})), self._metadata(raw)
        if isinstance(result, str):
            return Response(result, nodes, metadata)
        return PydanticResponse(result, nodes, metadata)

    def streamed(self, stream: Generator[ModelResponse, None, None]) -> StreamingResponse:
        """Returns the response of a stream; its nodes and metadata are complete with its last token."""
        nodes, metadata = [*self.by_id.values(), *self.additional], self._metadata()
        return StreamingResponse(tokens(stream, partial(self._complete, nodes, metadata)), nodes, metadata)

    def astreamed(self, stream: AsyncGenerator[ModelResponse, None]) -> AsyncStreamingResponse:
        """`streamed` for event loops."""
        nodes, metadata = [*self.by_id.values(), *self.additional], self._metadata()
        return AsyncStreamingResponse(atokens(stream, partial(self._complete, nodes, metadata)), nodes, metadata)

    def _complete(self, nodes: list[NodeWithScore], metadata: dict[str, Any], raw: Raw) -> None:
        """Completes the nodes and metadata of a stream's response, which its reader has already."""
        nodes[:] = self._with_shares(raw.get("document_shares", {}))
        metadata.update(self._metadata(raw))

    def _with_shares(self, shares: Mapping[str, float]) -> list[NodeWithScore]:
        """Returns the nodes with their documents' shares of an answer as scores, largest first, then additional ones.

        Nodes with equal texts are one document, and each has its share; a document that did not vote has 0. The scores
        are None where there are no shares.
        """
        by_text = {_text(self.by_id[name]): share for name, share in shares.items()}
        least = 0.0 if shares else None
        scored = [NodeWithScore(node=node.node, score=by_text.get(_text(node), least)) for node in self.by_id.values()]
        return [*sorted(scored, key=_rank, reverse=True), *self.additional]

    def _metadata(self, raw: Raw | None = None) -> dict[str, Any]:
        """Returns the metadata of a response; None: of a stream that has not ended."""
        others = {node.node_id: node.metadata for node in self.additional}
        own = {**others, **{name: node.metadata for name, node in self.by_id.items()}}
        scores = {name: node.score for name, node in self.by_id.items()}
        values: dict[str, Any] = {**own, "retrieval_scores": scores}
        if raw is None:
            return values
        # Absent where an answer has no tokens, or a grammar forced all of them.
        absent: dict[str, Any] = {"citations": [], "document_shares": {}, "doubt": None}
        return {**values, **{name: raw.get(name, value) for name, value in absent.items()}}


def without_nodes(response: RESPONSE_TYPE) -> RESPONSE_TYPE:
    """Returns the response to a query for which no nodes were found, with the keys that the metadata always have."""
    response.metadata = SourceNodes({})._metadata({})
    return response


def tokens(
    stream: Generator[ModelResponse, None, None], on_last: Callable[[Raw], None] | None = None
) -> Generator[str, None, None]:
    """Yields the parts of a streamed text.

    Args:
        stream: The responses.
        on_last: Called with the answer's metadata before its last part. Default None.
    """
    with closing(stream):
        for response in stream:
            if on_last is not None and is_last(response):
                on_last(response.raw or {})
            yield response.delta or ""


async def atokens(
    stream: AsyncGenerator[ModelResponse, None], on_last: Callable[[Raw], None] | None = None
) -> AsyncGenerator[str, None]:
    """`tokens` for event loops."""
    async with aclosing(stream):
        async for response in stream:
            if on_last is not None and is_last(response):
                on_last(response.raw or {})
            yield response.delta or ""


def as_documents(given: Any) -> Any:
    """Returns the argument ``documents`` of a call with nodes converted to documents; anything else as it is.

    Raises:
        RequestError: A node has no text.
    """
    return [_as_document(each) for each in given] if isinstance(given, (list, tuple)) else given


def _as_document(given: Any) -> Any:
    if isinstance(given, BaseNode):
        given = NodeWithScore(node=given)
    return Document(_text(given), given.node_id, given.score) if isinstance(given, NodeWithScore) else given


def _text(node: NodeWithScore) -> str:
    text = node.node.get_content(metadata_mode=MetadataMode.LLM)
    if not text:
        raise RequestError(f"node {quote(node.node_id)} has no text; leave it out, or convert it to text first")
    return text


def _rank(node: NodeWithScore) -> float:
    return float("-inf") if node.score is None else node.score
