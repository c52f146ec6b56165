"""From the documents of a body to a prompt with voices, and from an answer's citations to annotations."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from gac_core.chat.conversation import Prompt
from gac_core.errors import PromptTooLongError, RequestError
from gac_core.output import RequestOutput
from gac_core.server.errors import ApiError, as_api_error
from gac_core.server.protocol.common import DocumentBody, GenerationBody
from gac_core.voices import PLACE, Document, DocumentPrompt, as_documents

_NEED_DOCUMENTS = ("document_weights", "prior", "place", "combine_documents")


@dataclass(frozen=True)
class Source:
    """A document that has an address.

    Attributes:
        url: The address.
        title: Its title, or its id.
    """

    url: str
    title: str


Sources = Mapping[str, Source]
"""Sources by the ids of their documents."""


def document_prompt(body: GenerationBody, prompt: Prompt, prompt_field: str) -> Prompt | DocumentPrompt:
    """Returns what a body asks: its prompt, from the documents if it has any.

    Args:
        body: The body.
        prompt: Its prompt; with documents, it contains their place.
        prompt_field: The field of the body that has the prompt.

    Raises:
        ApiError: A field about documents is wrong, or the prompt has no place for them.
    """
    if body.documents is None:
        for name in _NEED_DOCUMENTS:
            if getattr(body, name) is not None:
                raise ApiError(
                    400, "invalid_value", f"{name} needs documents; give documents, or leave it out", param=name
                )
        return prompt
    place = body.place or PLACE
    # Documents and weights are checked by themselves first, so that errors name the field that they are about.
    documents = checked_documents(body.documents)
    weights: Any = "scores" if body.document_weights is None else body.document_weights
    with naming("documents" if body.document_weights is None else "document_weights"):
        DocumentPrompt(place, documents, weights, place=place)
    with naming(prompt_field):
        return DocumentPrompt(prompt, documents, weights, True if body.prior is None else body.prior, place)


def checked_documents(given: Sequence[str | DocumentBody]) -> tuple[Document, ...]:
    """Returns the documents of a body, each with an id.

    Raises:
        ApiError: Two of them have the same id.
    """
    with naming("documents"):
        found = [
            Document(each) if isinstance(each, str) else Document(each.text, each.id, each.score) for each in given
        ]
        return as_documents(found)


def field_of_long_prompt(error: PromptTooLongError, documents: Sequence[Document], prompt_field: str) -> str:
    """Returns the field of a body whose text is too long: that of the document, if the error names one.

    Args:
        error: The error.
        documents: The documents of the body, each with an id; empty without documents.
        prompt_field: The field that has the prompt.
    """
    places = [index for index, document in enumerate(documents) if document.id == error.document]
    return f"documents[{places[0]}]" if places else prompt_field


def sources_of(body: GenerationBody) -> Sources:
    """Returns the documents of a body that have an address."""
    pairs = ((number, item) for number, item in enumerate(body.documents or (), 1) if isinstance(item, DocumentBody))
    named = ((item.id or str(number), item) for number, item in pairs)
    return {name: Source(item.url, item.title or name) for name, item in named if item.url is not None}


def url_citations(output: RequestOutput, sources: Sources) -> list[dict[str, Any]]:
    """Returns an answer's citations of documents with an address, in OpenAI's form."""
    cited = ((each, sources[each.document]) for each in output.citations if each.document in sources)
    return [
        {
            "type": "url_citation",
            "url_citation": {
                "start_index": citation.start,
                "end_index": citation.end,
                "url": source.url,
                "title": source.title,
            },
        }
        for citation, source in cited
    ]


@contextmanager
def naming(param: str) -> Iterator[None]:
    """Names the field that a `RequestError` is about."""
    try:
        yield
    except RequestError as error:
        raise as_api_error(error, param) from error
