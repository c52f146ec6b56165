"""What reads a request: `Voice`, and `Document`s that are read in a voice each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, cast

from gac_core.chat.conversation import Message, Prompt, as_conversation
from gac_core.checks import check_flag, check_list, check_number, check_text
from gac_core.errors import RequestError, listed, quote

MAX_VOICES = 1024
"""Voices, and documents, of one request at most."""

SHARPNESS = 8.0
"""How far documents' weights follow their scores: the best one's is ``exp(SHARPNESS)`` times that of a score of 0."""

PLACE = "{document}"
"""Where a document stands in the prompt of a `DocumentPrompt`, unless it names another string."""


@dataclass(frozen=True)
class Voice:
    """A member that reads one prompt.

    Attributes:
        member: Name of the member.
        prompt: What it reads: a string, messages or a conversation.
        weight: Its weight relative to the other voices, above 0; multiplied by the member's weight in the request.
            Default 1.
        document: Id of the document that the prompt contains. The voices of one document are combined first, then the
            documents (`SamplingParams.combine_documents`). Default None: those without a document are one group.
        prior: Whether the prompt is one without a document, which does not vote: rules may contrast documents with it,
            and doubt is measured against it. Default False.

    Raises:
        RequestError: A field has another type or value.
    """

    member: str
    prompt: Prompt
    weight: float = 1.0
    document: str | None = None
    prior: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "member", check_text(RequestError, "a voice's member", self.member))
        weight = check_number(RequestError, "a voice's weight", self.weight, 0, low_open=True)
        object.__setattr__(self, "weight", weight)
        if self.document is not None:
            document = check_text(RequestError, "a voice's document", self.document, "give the id of a document")
            object.__setattr__(self, "document", document)
        check_flag(RequestError, "a voice's prior", self.prior)
        if self.prior and self.document is not None:
            raise RequestError(
                f"a voice with prior=True reads no document, but its document is {quote(self.document)}; leave one out"
            )


@dataclass(frozen=True)
class VoicesPrompt:
    """The voices that answer a request, in place of one prompt that all members read.

    Two voices of one member with equal prompts are read once, with the sum of their weights. The order has no effect.

    Attributes:
        voices: One or more, at least one of them no prior; also mappings with the fields of `Voice`.

    Raises:
        RequestError: There is no voice that votes, or one is not valid.
    """

    voices: Sequence[Voice]

    def __post_init__(self) -> None:
        given = check_list(RequestError, "voices", self.voices, "Voice")
        voices = tuple(_as_voice(each) for each in given)
        if not any(not voice.prior for voice in voices):
            raise RequestError("voices must contain at least one Voice without prior=True")
        _check_count("voices", len(voices))
        object.__setattr__(self, "voices", voices)


@dataclass(frozen=True)
class Document:
    """A text that a voice reads, such as a retrieved passage.

    Attributes:
        text: The text.
        id: Names it in citations. Default: its number in the list of documents, from "1".
        score: How relevant the retrieval found it, finite; larger is better. Default None: unknown.

    Raises:
        RequestError: A field has another type or value.
    """

    text: str
    id: str | None = None
    score: float | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "text", check_text(RequestError, "a document's text", self.text))
        if self.id is not None:
            object.__setattr__(self, "id", check_text(RequestError, "a document's id", self.id))
        if self.score is not None:
            score = check_number(RequestError, "a document's score", self.score, -math.inf)
            object.__setattr__(self, "score", score)


@dataclass(frozen=True)
class DocumentPrompt:
    """A prompt that is answered from several documents, each of which every member reads in a voice of its own.

    What precedes the place of the document should be the same for all questions, and the question follow it: then the
    KV cache of a document is used again for every other question, in any order and company of documents.

    Attributes:
        prompt: A string or a conversation that contains ``place`` once.
        documents: `Document`s, strings, or mappings with the fields of `Document`; one or more. Equal texts are one
            document, with the largest of their weights. The order has no effect.
        weights: The documents' weights. ``"scores"`` (default): ``exp(SHARPNESS * score / max |score|)``, and equal
            ones if no document has a score; ``"equal"``; or numbers above 0, one for each document.
        prior: Whether all members also read the prompt without a document, which does not vote (`Voice.prior`); a
            string stands in the document's place then. Default True: with an empty place.
        place: What the document takes the place of. Choose a string that no question can contain. Default
            ``"{document}"``.

    Raises:
        RequestError: A field has another type or value, two documents have one id, or the place does not occur once.
    """

    prompt: Prompt
    documents: Sequence[Document | str | Mapping[str, Any]]
    weights: Literal["scores", "equal"] | Sequence[float] = "scores"
    prior: bool | str = True
    place: str = PLACE

    def __post_init__(self) -> None:
        documents = as_documents(self.documents)
        _check_count("documents", len(documents))
        object.__setattr__(self, "documents", documents)
        object.__setattr__(self, "place", check_text(RequestError, "place", self.place))
        if not isinstance(self.prior, (bool, str)):
            raise RequestError(f"prior must be True, False or a string, not {quote(self.prior)}")
        self._check_place()
        self.document_weights()

    def _check_place(self) -> None:
        """Raises a `RequestError` unless the place occurs once, in a message without images."""
        conversation = as_conversation(self.prompt)
        texts = [str(self.prompt)] if conversation is None else [message.content for message in conversation.turns]
        found = sum(text.count(self.place) for text in texts)
        if found != 1:
            raise RequestError(
                f"the prompt must contain the place of the document, {quote(self.place)}, once, not {found} times; if "
                "a question may contain this string, set place to another one"
            )
        for message in () if conversation is None else conversation.turns:
            if message.images and self.place in message.content:
                raise RequestError("the message with the place of the document has images; put them into another one")

    def with_document(self, text: str) -> Prompt:
        """Returns the prompt with a text in the document's place."""
        conversation = as_conversation(self.prompt)
        if conversation is None:
            return cast(str, self.prompt).replace(self.place, text)
        return replace(conversation, messages=[self._filled(message, text) for message in conversation.turns])

    def _filled(self, message: Message, text: str) -> Message:
        if self.place not in message.content:
            return message
        return replace(message, content=message.content.replace(self.place, text))

    def document_weights(self) -> dict[str, tuple[Document, float]]:
        """Returns by text each different document, and its weight; sorted by text."""
        documents = cast(tuple[Document, ...], self.documents)
        found: dict[str, tuple[Document, float]] = {}
        for document, weight in zip(documents, _weights(documents, self.weights), strict=True):
            if document.text not in found or weight > found[document.text][1]:
                found[document.text] = document, weight
        return dict(sorted(found.items()))


Documents = Sequence[Document | str | Mapping[str, Any]]
"""Documents as callers give them."""

AnyPrompt = Prompt | DocumentPrompt | VoicesPrompt
"""What a request can answer."""


def as_documents(documents: object) -> tuple[Document, ...]:
    """Returns documents, each with an id.

    Raises:
        RequestError: They are no documents, there are none, or two have the same id.
    """
    given = check_list(RequestError, "documents", documents, "documents")
    if not given:
        raise RequestError("documents must contain at least one document")
    found = tuple(_as_document(each, number) for number, each in enumerate(given, 1))
    ids = [document.id for document in found]
    twice = next((each for each in ids if ids.count(each) > 1), None) if len(set(ids)) < len(ids) else None
    if twice is not None:
        raise RequestError(f"two documents have the id {quote(twice)}; give each its own")
    return found


def as_prompt(
    prompt: AnyPrompt | None,
    voices: Sequence[Voice] | None = None,
    documents: Documents | None = None,
) -> AnyPrompt:
    """Returns what the arguments of a call ask for.

    Args:
        prompt: A prompt; None with ``voices``.
        voices: As in `VoicesPrompt`.
        documents: As in `DocumentPrompt`, of which ``prompt`` is the prompt.

    Raises:
        RequestError: The arguments contradict one another, or are not valid.
    """
    if voices is not None:
        if prompt is not None or documents is not None:
            raise RequestError("voices have their own prompts; leave out prompt and documents, or voices")
        return VoicesPrompt(voices)
    if documents is not None:
        if isinstance(prompt, (DocumentPrompt, VoicesPrompt)):
            raise RequestError(f"the prompt is a {type(prompt).__name__} already; leave out documents")
        return DocumentPrompt(cast(Prompt, prompt), documents)
    if prompt is None:
        raise RequestError("there is no prompt; give a prompt, or voices")
    return prompt


def _as_voice(value: object) -> Voice:
    if isinstance(value, Voice):
        return value
    return Voice(**_fields(value, "voice", ("member", "prompt"), ("weight", "document", "prior")))


def _as_document(value: object, number: int) -> Document:
    if isinstance(value, str):
        value = Document(value)
    elif not isinstance(value, Document):
        value = Document(**_fields(value, "document", ("text",), ("id", "score")))
    return value if value.id is not None else replace(value, id=str(number))


def _fields(value: object, what: str, required: Sequence[str], optional: Sequence[str]) -> dict[str, Any]:
    """Returns the fields of a mapping in place of a value."""
    if not isinstance(value, Mapping):
        raise RequestError(
            f"each {what} must be a {what.capitalize()} or a mapping with its fields, not {quote(value)}"
        )
    if not set(required) <= set(value) or not set(value) <= {*required, *optional}:
        raise RequestError(
            f"a {what} must have {listed(required)} and may have {listed(optional)}; it has "
            f"{listed(map(quote, value)) or 'nothing'}"
        )
    return dict(value)


def _check_count(what: str, count: int) -> None:
    if count > MAX_VOICES:
        raise RequestError(f"{what} has {count} elements; give {MAX_VOICES} at most")


def _weights(documents: Sequence[Document], weights: object) -> list[float]:
    """Returns the weight of each document, above 0; the largest of those by scores is 1."""
    if isinstance(weights, str):
        if weights == "equal":
            return [1.0] * len(documents)
        if weights == "scores":
            return _weights_by_score(documents)
        raise RequestError(f"weights of documents must be 'scores', 'equal' or numbers, not {quote(weights)}")
    given = check_list(RequestError, "weights of documents", weights, "numbers")
    if len(given) != len(documents):
        raise RequestError(f"{len(given)} weights for {len(documents)} documents; give one for each")
    return [check_number(RequestError, "each weight of a document", each, 0, low_open=True) for each in given]


def _weights_by_score(documents: Sequence[Document]) -> list[float]:
    scores = [document.score for document in documents if document.score is not None]
    if not scores:
        return [1.0] * len(documents)
    unknown = next((document.id for document in documents if document.score is None), None)
    if unknown is not None:
        raise RequestError(
            f"document {quote(unknown)} has no score, but others have; give each one a score, or set the documents' "
            "weights, such as 'equal'"
        )
    largest = max(map(abs, scores)) or 1.0
    return [math.exp(SHARPNESS * (score - max(scores)) / largest) for score in scores]
