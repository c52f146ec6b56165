"""Metrics: what an answer is worth, 0 to 1."""

from __future__ import annotations

import importlib
import importlib.util
import math
import re
import string
import sys
import unicodedata
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

from gac_core.errors import listed, quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.questions import LETTERS, Question, QuestionSet

# A hyphen after a word is no sign: "2010-2015".
_NUMBER = re.compile(r"(?:(?<!\w)[-\u2212])?(?:\d[\d,]*(?:\.\d+)?|\.\d+)")


def squad_words(text: str) -> list[str]:
    """Returns the words of a text as SQuAD compares them: lower case, no punctuation, no articles; maybe none."""
    return next(_forms(text))


def _forms(text: str) -> Iterator[list[str]]:
    """Yields the words of a text in lower case: without punctuation and articles, with articles, and with both."""
    lower = unicodedata.normalize("NFC", text).lower()
    kept = "".join(letter for letter in lower if letter not in string.punctuation)
    yield re.sub(r"\b(a|an|the)\b", " ", kept).split()
    yield kept.split()
    yield lower.split()


def normalised(text: str) -> list[str]:
    """Returns `squad_words`; where none are left, as of ``(A)`` or ``] }``, articles stay, or punctuation too."""
    return next(filter(None, _forms(text)), [])


def _words(text: str, answer: str) -> tuple[list[str], list[str]]:
    """Returns the words of a text and of an accepted answer, in the form in which `normalised` has the answer's."""
    pairs = zip(_forms(text), _forms(answer), strict=True)
    return next((pair for pair in pairs if pair[1]), ([], []))


class Metric(ABC):
    """Scores answers.

    Args:
        name: Its name in results.
    """

    def __init__(self, name: str) -> None:
        self.name = name

    @abstractmethod
    def score(self, text: str, question: Question) -> float:
        """Returns what an answer is worth, 0 to 1."""

    def vote(self, text: str, question: Question) -> str:
        """Returns what answers have in common that count as the same one in a majority vote."""
        return " ".join(normalised(text))

    def check(self, question: Question) -> None:
        """Raises an `EvaluationError` if the question cannot be scored. Default: every question can."""
        return


class Accepted(Metric):
    """Best value of a comparison with each accepted answer.

    Args:
        name: Its name.
        compare: From an answer and an accepted answer to 0 to 1.
    """

    def __init__(self, name: str, compare: Callable[[str, str], float]) -> None:
        super().__init__(name)
        self._compare = compare

    def score(self, text: str, question: Question) -> float:
        """Returns the largest value over the accepted answers."""
        return max(self._compare(text, answer) for answer in question.answers)


def exact(text: str, answer: str) -> float:
    """Returns whether a text equals the answer after normalisation."""
    given, wanted = _words(text, answer)
    return float(given == wanted)


def f1(text: str, answer: str) -> float:
    """Returns the harmonic mean of precision and recall over words."""
    given, wanted = _words(text, answer)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def contains(text: str, answer: str) -> float:
    """Returns whether the text contains the answer's words consecutively."""
    given, wanted = _words(text, answer)
    return float(f" {' '.join(wanted)} " in f" {' '.join(given)} ")


class Choice(Metric):
    """Whether the right choice was given: by its text, else by the first letter of a choice in the answer."""

    def __init__(self) -> None:
        super().__init__("choice")

    def score(self, text: str, question: Question) -> float:
        """Returns whether the right choice was given."""
        return float(self.vote(text, question) in question.letters)

    def vote(self, text: str, question: Question) -> str:
        """Returns the letter; empty where the answer has none."""
        letters = LETTERS[: len(question.choices)]
        alone = re.fullmatch(rf"\W*([{letters}])\W*", text)
        if alone:
            return alone[1]
        # Before letters inside a text: "A dog" is no A.
        given = [letter for letter, choice in zip(letters, question.choices, strict=False) if exact(text, choice)]
        if given:
            return given[0]
        found = re.search(rf"\b([{letters}])\b", text)
        return found[1] if found else ""

    def check(self, question: Question) -> None:
        """Raises if the question has no choices."""
        if not question.choices:
            raise EvaluationError(
                f"the metric choice needs choices, which question {quote(question.id)} of {quote(question.task)} has "
                "not; add them, or use another metric such as exact",
                question=question.id,
            )


class Number(Metric):
    """Whether the number after ``####``, else the last number of the answer, is the accepted one (as in GSM8K)."""

    def __init__(self) -> None:
        super().__init__("number")

    def score(self, text: str, question: Question) -> float:
        """Returns whether the number was given."""
        given = number_of(text)
        return float(given is not None and given in [number_of(answer) for answer in question.answers])

    def vote(self, text: str, question: Question) -> str:
        """Returns the number; empty without one."""
        given = number_of(text)
        return "" if given is None else repr(given)

    def check(self, question: Question) -> None:
        """Raises if an accepted answer has no number."""
        for answer in question.answers:
            if number_of(answer) is None:
                raise EvaluationError(
                    f"the metric number needs a number in each answer, not {quote(answer)} (question "
                    f"{quote(question.id)} of {quote(question.task)}); use another metric such as exact",
                    question=question.id,
                )


def number_of(text: str) -> float | None:
    """Returns the number after ``####``, else the last number of a text; None without one."""
    _, mark, last = text.rpartition("####")
    found = _NUMBER.findall(last)
    if not found:
        return None
    return float((found[0] if mark else found[-1]).replace(",", "").replace("\u2212", "-"))


class Pattern(Metric):
    """Whether what a regular expression finds in the answer is an accepted answer, after normalisation.

    Args:
        pattern: The expression; its first group, else the whole match, of its first match is compared.
    """

    def __init__(self, pattern: str) -> None:
        super().__init__(f"regex:{pattern}")
        try:
            self._pattern = re.compile(pattern)
        except re.error as error:
            raise EvaluationError(f"the pattern of the metric {quote(self.name)} is not valid: {error}") from error

    def _found(self, text: str) -> str | None:
        match = self._pattern.search(text)
        if match is None:
            return None
        return (match[1] if self._pattern.groups else match[0]) or ""

    def score(self, text: str, question: Question) -> float:
        """Returns whether an accepted answer was found."""
        found = self._found(text)
        return 0.0 if found is None else max(exact(found, answer) for answer in question.answers)

    def vote(self, text: str, question: Question) -> str:
        """Returns what was found, normalised."""
        return super().vote(self._found(text) or "", question)


class Function(Metric):
    """A Python function ``(text, question) -> float``.

    Args:
        name: ``module:function``, or ``file.py:function``.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        module, _, function = name.rpartition(":")
        try:
            self._function = getattr(_module(module), function)
        except Exception as error:
            raise EvaluationError(
                f"cannot load the metric {quote(name)}: {type(error).__name__}: {error}; give module:function or "
                "file.py:function"
            ) from error
        if not callable(self._function):
            raise EvaluationError(f"the metric {quote(name)} is not a function")

    def score(self, text: str, question: Question) -> float:
        """Returns the function's value.

        Raises:
            EvaluationError: The function raised, or its value is not a number from 0 to 1.
        """
        place = f"the metric {quote(self.name)} on question {quote(question.id)} of {quote(question.task)}"
        try:
            value = self._function(text, question)
        except Exception as error:
            raise EvaluationError(
                f"{place} raised {type(error).__name__}: {error}; mend the function, and run again to continue",
                question=question.id,
            ) from error
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not 0 <= number <= 1:
            raise EvaluationError(f"{place} must be a number from 0 to 1, not {quote(value)}", question=question.id)
        return number


def _module(name: str) -> object:
    """Imports a module by its name, from the working directory too, or from a file."""
    if not name.endswith(".py"):
        folder = str(Path.cwd())
        sys.path.insert(0, folder)
        try:
            return importlib.import_module(name)
        finally:
            sys.path.remove(folder)
    spec = importlib.util.spec_from_file_location(Path(name).stem, name)
    if spec is None or spec.loader is None:
        raise ImportError(f"cannot import {name}")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


METRICS: dict[str, Metric] = {
    "exact": Accepted("exact", exact),
    "f1": Accepted("f1", f1),
    "contains": Accepted("contains", contains),
    "choice": Choice(),
    "number": Number(),
}


def metric_named(name: str) -> Metric:
    """Returns a metric: a key of `METRICS`, ``regex:PATTERN``, ``module:function`` or ``file.py:function``.

    Raises:
        EvaluationError: There is no such metric.
    """
    if name in METRICS:
        return METRICS[name]
    kind, colon, rest = name.partition(":")
    if kind == "regex" and rest:
        return Pattern(rest)
    if colon and rest and kind != "regex":
        return Function(name)
    raise EvaluationError(
        f"unknown metric {quote(name)}; known are {listed(METRICS)}, regex:PATTERN, and module:function"
    )


def default_metric(questions: QuestionSet) -> str:
    """Returns the metric that fits a set.

    ``"choice"`` for questions with choices, ``"number"`` for solutions that end with ``#### NUMBER``, ``"f1"`` for
    questions about passages, otherwise ``"exact"``.
    """
    first = questions.questions[0]
    if first.choices:
        return "choice"
    if any("####" in answer for answer in first.answers):
        return "number"
    return "f1" if first.contexts else "exact"
