"""Documents among the arguments of a call, and a place for them in a prompt that also holds text of users."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import count
from typing import Any

from gac_core.chat.conversation import Prompt
from gac_core.errors import RequestError, listed
from gac_core.voices import PLACE, DocumentPrompt

_FIELDS = {"documents": "documents", "document_weights": "weights", "prior": "prior", "place": "place"}

DOCUMENT_ARGUMENTS = frozenset(_FIELDS)
"""Arguments of a call that are fields of its `DocumentPrompt` in each framework (``document_weights``: ``weights``)."""


def document_prompt(prompt: Prompt, arguments: Mapping[str, Any]) -> Prompt | DocumentPrompt:
    """Returns what a call answers: its prompt, from the documents that its arguments give.

    Args:
        prompt: The prompt; with documents, it contains their place.
        arguments: Arguments of the call by name; None is as if not given, and names outside `DOCUMENT_ARGUMENTS` are
            ignored.

    Returns:
        The prompt itself where there are no documents.

    Raises:
        RequestError: An argument is wrong, or there are arguments about documents but no documents.
    """
    given = {name: arguments[name] for name in _FIELDS if arguments.get(name) is not None}
    if "documents" not in given:
        if given:
            raise RequestError(f"{listed(given)} without documents; give documents as well, or leave it out")
        return prompt
    return DocumentPrompt(prompt, **{_FIELDS[name]: value for name, value in given.items()})


def free_place(text: str) -> str:
    """Returns a place for the document (`DocumentPrompt.place`) that a prompt does not contain.

    Args:
        text: The whole prompt, with nothing in the place; several messages joined by a character such as a line break.

    Returns:
        ``"{document}"``, or ``"{document-1}"``, ``"{document-2}"``, ... where the prompt contains it.
    """
    if PLACE not in text:
        return PLACE
    return next(place for place in (f"{{document-{number}}}" for number in count(1)) if place not in text)
