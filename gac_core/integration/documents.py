"""A place for the document in a prompt that also holds text of users."""

from __future__ import annotations

from itertools import count


def free_place(text: str) -> str:
    """Returns a place for the document (`DocumentPrompt.place`) that a prompt does not contain.

    Args:
        text: The whole prompt, with nothing in the place; several messages joined by a character such as a line break.

    Returns:
        ``"{document}"``, or ``"{document-1}"``, ``"{document-2}"``, ... where the prompt contains it.
    """
    places = ("{document}" if number == 0 else f"{{document-{number}}}" for number in count())
    return next(place for place in places if place not in text)
