"""The first wrong token of an answer, and choices among complete answers.

A token is the first wrong one if no accepted answer can be reached after it: no continuation makes the text equal to an
accepted answer under SQuAD's normalisation (lower case, without punctuation and articles).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from gac_core.evaluation.metrics import exact, normalised, squad_words

Course = Literal["right", "goes on", "ends early", "wrong turn"]
COURSES: tuple[Course, ...] = ("right", "goes on", "ends early", "wrong turn")
_ARTICLES = ("a", "an", "the")


@dataclass(frozen=True)
class Verdict:
    """The course of an answer.

    Attributes:
        course: ``"right"``: it equals an accepted answer. ``"goes on"``: it had written one and went on. ``"ends
            early"``: it ended at the beginning of one, or before it. ``"wrong turn"``: it left the way to every
            accepted answer before it had written one.
        place: Number of the first wrong token, from 0; None unless it went on or took a wrong turn.
    """

    course: Course
    place: int | None = None


def can_become(text: str, answer: str) -> bool:
    """Returns whether some continuation of a text equals the answer after normalisation."""
    # The last word may be incomplete.
    last = re.search(r"\S*$", text)
    begun = last[0] if last else ""
    words, given = squad_words(answer), squad_words(text.removesuffix(begun))
    rest = "".join(squad_words(begun))
    if given != words[: len(given)]:
        return False
    following = [*words[len(given) : len(given) + 1], *_ARTICLES]
    return any(word.startswith(rest) for word in following)


def judge(tokens: Sequence[bytes], answers: Sequence[str], stop: str = "\n") -> Verdict:
    """Returns the course of an answer.

    Args:
        tokens: Its tokens, that with the stop string included.
        answers: The accepted answers.
        stop: The string at which it ends.
    """
    before = ""
    for place in range(len(tokens)):
        text = b"".join(tokens[: place + 1]).decode(errors="ignore").split(stop)[0]
        if not any(can_become(text, answer) for answer in answers):
            return Verdict("goes on" if _equals(before, answers) else "wrong turn", place)
        before = text
    return Verdict("right" if _equals(before, answers) else "ends early")


def _equals(text: str, answers: Sequence[str]) -> bool:
    return any(exact(text, answer) for answer in answers)


def majority(texts: Mapping[str, str], confidences: Mapping[str, float]) -> str:
    """Returns the name of the member whose complete answer is chosen by most members.

    Args:
        texts: Each member's answer; answers that are equal after normalisation count as one.
        confidences: Each member's confidence in its answer, which decides between answers with as many members, and
            between the members of one answer.
    """
    votes = [tuple(normalised(text)) for text in texts.values()]
    return max(texts, key=lambda name: (votes.count(tuple(normalised(texts[name]))), confidences[name]))


def most_confident(confidences: Mapping[str, float]) -> str:
    """Returns the name of the most confident member; the first of several."""
    return max(confidences, key=lambda name: confidences[name])
