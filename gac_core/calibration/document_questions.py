"""Questions with the documents that they were answered from, and which of these contains the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from gac_core.errors import listed, quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.integration.documents import free_place
from gac_core.voices import PLACE, Document, DocumentPrompt

FIELDS = ("question", "documents", "answer_in")
PROMPT = "Text: {document}\n\nAnswer the question from the text in as few words as possible.\nQuestion: {question}"
"""The prompt by default; the document stands first, so that its KV cache is reused for other questions."""


@dataclass(frozen=True)
class DocumentQuestion:
    """A question, its documents, and where the answer is.

    Attributes:
        question: Its text.
        documents: The documents, one or more, with their scores if they have any.
        answer_in: Index of the document that contains the answer, from 0; None if none does.
    """

    question: str
    documents: tuple[Document, ...]
    answer_in: int | None

    def variants(self) -> tuple[DocumentQuestion, ...]:
        """Returns the question with the document that contains the answer, and with another one in its place.

        Both have equally many documents, since agreement and shares depend on their number: the first is without the
        last of the other documents. A question without an answer, or without another document, is the only variant.
        """
        if self.answer_in is None:
            return (self,)
        answering = self.documents[self.answer_in]
        others = tuple(document for document in self.documents if document.text != answering.text)
        if not others:
            return (self,)
        before = sum(document.text != answering.text for document in self.documents[: self.answer_in])
        before = min(before, len(others) - 1)
        kept = (*others[:before], answering, *others[before:-1])
        return replace(self, documents=kept, answer_in=before), replace(self, documents=others, answer_in=None)

    def prompt(self, form: str, chat: bool) -> DocumentPrompt:
        """Returns what is asked.

        Args:
            form: A text that contains ``{document}`` and ``{question}`` once each.
            chat: Whether it is a user's message, by the members' chat templates.
        """
        before, after = form.split("{document}")
        place = free_place((before + after).replace("{question}", self.question))
        text = (before + place + after).replace("{question}", self.question)
        return DocumentPrompt([{"role": "user", "content": text}] if chat else text, self.documents, place=place)


def check_form(form: str) -> None:
    """Raises an `EvaluationError` unless a form of prompts contains each of its places once."""
    for place in ("{document}", "{question}"):
        if form.count(place) != 1:
            raise EvaluationError(f"the prompt must contain {place} once, not {form.count(place)} times")


def read_document_questions(path: Path, limit: int | None = None) -> list[DocumentQuestion]:
    """Returns the questions of a file of JSON lines ``{"question": ..., "documents": [...], "answer_in": 0}``.

    A document is a text, or an object with ``text`` and ``score``, that of the retrieval.

    Args:
        path: The file.
        limit: How many to read at most, from the beginning. Default: all.

    Raises:
        EvaluationError: The file cannot be read, or a line is wrong.
    """
    try:
        # Only at line ends: a JSON text may contain other characters that `str.splitlines` splits at.
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise EvaluationError(f"cannot read {path}: {error}") from error
    found: list[DocumentQuestion] = []
    for number, line in enumerate(lines, 1):
        if line.strip() and (limit is None or len(found) < limit):
            try:
                found.append(_question(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise EvaluationError(f"line {number} of {path}: {error}") from error
    if not found:
        raise EvaluationError(f"{path} has no questions")
    return found


def _question(values: object) -> DocumentQuestion:
    if not isinstance(values, Mapping) or set(values) != set(FIELDS):
        raise ValueError(f"it must be an object with the keys {listed(FIELDS)}, not {quote(values)}")
    question, documents, place = (values[name] for name in FIELDS)
    if not isinstance(question, str) or not question.strip():
        raise ValueError(f"question must be a text, not {quote(question)}")
    if not isinstance(documents, list) or not documents:
        raise ValueError(f"documents must be a list of texts, not {quote(documents)}")
    found = tuple(_document(each) for each in documents)
    # Raises unless all have a score or none has.
    DocumentPrompt(PLACE, found)
    is_index = isinstance(place, int) and not isinstance(place, bool) and place in range(len(found))
    if place is not None and not is_index:
        raise ValueError(f"answer_in must be null or an index from 0 to {len(found) - 1}, not {quote(place)}")
    return DocumentQuestion(question, found, place)


def _document(value: object) -> Document:
    if isinstance(value, Mapping) and set(value) == {"text", "score"}:
        return Document(value["text"], score=value["score"])
    if not isinstance(value, str):
        raise ValueError(f"each document must be a text, or an object with text and score, not {quote(value)}")
    return Document(value)
