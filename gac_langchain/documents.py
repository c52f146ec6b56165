"""LangChain's documents as the ensemble's, and the ensemble's citations as LangChain's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import count
from numbers import Real
from typing import Any

from langchain_core.documents import Document
from langchain_core.messages.content import Citation

from gac_core import DOCUMENT_ARGUMENTS, AnyPrompt, Prompt, RequestError, RequestOutput, document_prompt, quote
from gac_core import Citation as CitedSpan
from gac_core import Document as VoiceDocument

DOCUMENT_OPTIONS = DOCUMENT_ARGUMENTS | {"score_key"}
"""Arguments of a call that concern its documents."""

SCORE_KEYS = ("relevance_score", "score")
"""Keys of a document's metadata that rerankers and retrievers write scores to; the first that is there counts."""


@dataclass(frozen=True)
class Source:
    """What a citation says about its document.

    Attributes:
        text: The text that the members read.
        title: ``title`` of its metadata, else ``source``; None without either.
        url: ``url`` of its metadata, else ``source`` if that is a web address; None without either.
    """

    text: str
    title: str | None = None
    url: str | None = None


def asked_of_documents(prompt: Prompt, arguments: Mapping[str, Any]) -> tuple[AnyPrompt, Mapping[str, Source] | None]:
    """Returns what a call asks, and the documents that it gives, by id.

    Args:
        prompt: Its prompt, with the place for a document if it gives documents.
        arguments: Its arguments; others than `DOCUMENT_OPTIONS` are ignored.

    Returns:
        The prompt as it is, and None, without documents.

    Raises:
        RequestError: An argument of documents is wrong, or there are no documents for it.
    """
    given = {name: arguments[name] for name in DOCUMENT_ARGUMENTS if name in arguments}
    score_key = arguments.get("score_key")
    if given.get("documents") is None:
        if score_key is not None:
            raise RequestError(f"score_key={quote(score_key)} needs documents=[...]")
        return document_prompt(prompt, given), None
    weights = given.get("document_weights")
    # Other weights do not depend on scores.
    scored = weights is None or (isinstance(weights, str) and weights == "scores")
    found = to_documents(given["documents"], score_key, scored)
    documents = [document for document, _ in found.values()]
    return document_prompt(prompt, {**given, "documents": documents}), {name: own for name, (_, own) in found.items()}


def to_documents(
    documents: Any, score_key: str | None = None, scored: bool = True
) -> dict[str, tuple[VoiceDocument, Source]]:
    """Returns documents in any of the accepted forms as the ensemble's, and what citations say about them, by id.

    The id of a document is its own (``Document.id``, else ``id`` of its metadata), or its number in the list. Chunks of
    one text often share its id: the second document with an id gets ``"#2"`` at its end, the third ``"#3"``.

    Args:
        documents: A sequence of LangChain documents with scores in their metadata, of `gac_core.Document`, strings, and
            mappings with ``text``, ``id`` and ``score``.
        score_key: The key of the metadata that holds the score. Default: the first of `SCORE_KEYS` that one of the
            documents has; scores under different keys are not comparable.
        scored: Whether scores in metadata are read. Default True.

    Raises:
        RequestError: It is no sequence, a document has another form or no text, or a score is not a number.
    """
    if isinstance(documents, (str, Mapping)) or not isinstance(documents, Sequence):
        raise RequestError(f"documents must be a list of documents, not {quote(documents)}")
    key = (score_key or _score_key(documents)) if scored else None
    found: dict[str, tuple[VoiceDocument, Source]] = {}
    for number, given in enumerate(documents, 1):
        document = _document(given, number, key)
        own = str(number) if document.id is None else document.id
        names = (own if again == 1 else f"{own}#{again}" for again in count(1))
        name = next(name for name in names if name not in found)
        found[name] = replace(document, id=name), _source(document.text, given)
    return found


def _document(document: Any, number: int, score_key: str | None) -> VoiceDocument:
    if isinstance(document, Document):
        given = document.id if document.id is not None else document.metadata.get("id")
        id_ = str(number if given is None else given)
        if not document.page_content:
            raise RequestError(f"document {quote(id_)} has no text; leave it out")
        return VoiceDocument(document.page_content, id_, _score(document.metadata, id_, score_key))
    if isinstance(document, str):
        return VoiceDocument(document)
    if isinstance(document, Mapping):
        if "text" not in document or not set(document) <= {"text", "id", "score"}:
            raise RequestError(f"a document must have text and may have id and score; it has {quote(list(document))}")
        return VoiceDocument(**document)
    if isinstance(document, VoiceDocument):
        return document
    raise RequestError(f"a document must be a Document, a string or a mapping with text, not {quote(document)}")


def _score_key(documents: Sequence[Any]) -> str | None:
    """Returns the key that holds documents' scores, the same for all of them; None where none has a score."""
    metadata = [document.metadata for document in documents if isinstance(document, Document)]
    return next((key for key in SCORE_KEYS if any(own.get(key) is not None for own in metadata)), None)


def _score(metadata: Mapping[str, Any], id_: str, key: str | None) -> float | None:
    """Returns the score in a document's metadata; None without one."""
    score = None if key is None else metadata.get(key)
    if score is None:
        return None
    # Scores of numpy are numbers as well.
    if isinstance(score, bool) or not isinstance(score, Real):
        raise RequestError(
            f"the {key!r} in the metadata of document {quote(id_)} must be a number, not {quote(score)}; name the key "
            "of its score with score_key, or set document_weights='equal'"
        )
    return float(score)


def _source(text: str, document: Any) -> Source:
    """Returns what citations say about a document, given in any form."""
    metadata = document.metadata if isinstance(document, Document) else {}
    origin, title, url = (
        None if metadata.get(key) is None else str(metadata[key]) for key in ("source", "title", "url")
    )
    if url is None and origin is not None and origin.startswith(("http://", "https://")):
        url = origin
    return Source(text, origin if title is None else title, url)


def to_annotation(span: CitedSpan, sources: Mapping[str, Source]) -> Citation:
    """Returns a citation as an annotation of a text block.

    Args:
        span: The span of the answer and the document that carried it.
        sources: The documents by id.
    """
    citation = Citation(type="citation", start_index=span.start, end_index=span.end)
    source = sources.get(span.document)
    if source is not None:
        citation["cited_text"] = source.text
        if source.title is not None:
            citation["title"] = source.title
        if source.url is not None:
            citation["url"] = source.url
    citation["extras"] = {
        "document": span.document,
        "share": span.share,
        "shares": dict(span.shares),
        "members": dict(span.members),
        "doubt": asdict(span.doubt),
    }
    return citation


def text_block(text: str, citations: Sequence[Citation] = ()) -> dict[str, Any]:
    """Returns text as a content block; blocks of a stream add up to one, since they have the same index."""
    block: dict[str, Any] = {"type": "text", "text": text, "index": "lc_txt_0"}
    return {**block, "annotations": list(citations)} if citations else block


def cited_content(output: RequestOutput, sources: Mapping[str, Source]) -> list[str | dict[Any, Any]]:
    """Returns the content of an answer from documents: its text with citations, or nothing where it has no text."""
    if not output.text:
        return []
    return [text_block(output.text, [to_annotation(span, sources) for span in output.citations])]
