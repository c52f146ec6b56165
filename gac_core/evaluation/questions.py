"""Questions with known answers, read from JSON lines."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from gac_core.errors import listed, quote, shorten
from gac_core.evaluation.errors import EvaluationError

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
FIELDS = ("question", "answers", "answer", "id", "choices", "contexts", "context", "domain", "split")
Half = Literal["choose", "report"]


@dataclass(frozen=True)
class Question:
    """A question with its accepted answers.

    Attributes:
        id: Unique within its set; default the number of its line, from 1.
        question: The text of the question.
        answers: Accepted answers, one or more. With choices exactly one, which is one of them.
        choices: Choices of a multiple-choice question, at most 26; empty for other questions.
        contexts: Passages that the prompt contains, in order.
        domain: Subject or subtask, such as ``"anatomy"``; empty if there is none.
        task: Name of the set that it belongs to.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    choices: tuple[str, ...] = ()
    contexts: tuple[str, ...] = ()
    domain: str = ""
    task: str = ""

    @property
    def key(self) -> tuple[str, str]:
        """Task and id, which identify it in results."""
        return self.task, self.id

    @property
    def letters(self) -> tuple[str, ...]:
        """The letters of the right choice, from ``A``: one, or several where choices have the same text."""
        pairs = zip(LETTERS, self.choices, strict=False)
        return tuple(letter for letter, choice in pairs if choice == self.answers[0])

    @property
    def rank(self) -> str:
        """SHA-256 of task and id, hexadecimal: samples are the questions with the lowest ranks."""
        return _rank(self.task, self.id)

    @property
    def half(self) -> Half:
        """The half that it belongs to: about as many questions are in each."""
        return half_of(self.task, self.id)


def half_of(task: str, question: str) -> Half:
    """Returns the half that the question with this id belongs to: a hash of task and id decides."""
    return "choose" if int(_rank(task, question)[-1], 16) % 2 else "report"


def _rank(task: str, question: str) -> str:
    return hashlib.sha256(f"{task}\n{question}".encode()).hexdigest()


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one file.

    Attributes:
        questions: The questions, in the order of the file.
        shots: Examples for few-shot prompts: the lines with ``"split": "shots"``.
        path: The file.
        digest: SHA-256 of the file, hexadecimal.
    """

    questions: tuple[Question, ...]
    shots: tuple[Question, ...]
    path: Path
    digest: str

    @property
    def name(self) -> str:
        """Name of the task: the file's name without its extension."""
        return self.path.stem

    def limited(self, limit: int | None = None, half: Half | None = None) -> QuestionSet:
        """Returns the set with fewer questions.

        Args:
            limit: Maximum number of questions: a random sample, fixed by the ids, in the order of the file. A larger
                sample contains the smaller ones. Default: all.
            half: Only the questions of this half. Default: both. It is taken before the limit.
        """
        kept = [each for each in self.questions if half in (None, each.half)]
        if limit is not None and limit < len(kept):
            last = sorted(each.rank for each in kept)[limit]
            kept = [each for each in kept if each.rank < last]
        return replace(self, questions=tuple(kept))


def halves(questions: Iterable[Question]) -> tuple[list[Question], list[Question]]:
    """Returns the questions on which settings are chosen, and those on which the chosen one is reported."""
    questions = list(questions)
    choose = [question for question in questions if question.half == "choose"]
    return choose, [question for question in questions if question.half == "report"]


def read_sets(paths: Sequence[str | Path]) -> list[QuestionSet]:
    """Returns the sets of several files.

    Raises:
        EvaluationError: A file cannot be used, or two have the same name.
    """
    sets = [read_questions(path) for path in paths]
    names = [each.name for each in sets]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise EvaluationError(f"two data files are called {quote(twice[0])}; rename one, results are kept by this name")
    return sets


def read_questions(path: str | Path) -> QuestionSet:
    """Reads JSON lines: one object a line with ``question``, and ``answers`` (a list) or ``answer`` (a string).

    Optional keys: ``id``, ``choices`` (a list), ``contexts`` (a list) or ``context`` (a string), ``domain``, and
    ``split``: ``"shots"`` marks an example for few-shot prompts. Other keys are errors unless they begin with ``_``.

    Raises:
        EvaluationError: The file cannot be read or has no questions, or a line is wrong.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
        lines = data.decode("utf-8").split("\n")
    except OSError as error:
        raise EvaluationError(f"cannot read the questions {quote(str(path))}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise EvaluationError(f"{path}: it is not UTF-8 (byte {error.start}); convert it") from error
    rows = [_row(path, number, line) for number, line in enumerate(lines, 1) if line.strip()]
    questions = [question for question, shot in rows if not shot]
    if not questions:
        raise EvaluationError(f"{path} has no questions; each line must be an object with question and answers")
    _check_ids(path, questions)
    return QuestionSet(
        tuple(questions), tuple(each for each, shot in rows if shot), path, hashlib.sha256(data).hexdigest()
    )


def _check_ids(path: Path, questions: Sequence[Question]) -> None:
    seen: set[str] = set()
    for question in questions:
        if question.id in seen:
            raise EvaluationError(
                f"{path}: two questions have the id {quote(question.id)}; ids must differ (default: the number of the "
                "line)",
                question=question.id,
            )
        seen.add(question.id)


def _row(path: Path, number: int, line: str) -> tuple[Question, bool]:
    """Returns the question of a line, and whether it is an example."""
    place = f"{path}, line {number}"
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise EvaluationError(f"{place}: not valid JSON: {shorten(str(error))}; write one object a line") from error
    if not isinstance(row, dict):
        kind = "an array: write each of its elements on a line of its own" if isinstance(row, list) else quote(row)
        raise EvaluationError(f"{place}: it must be an object with question and answers, not {kind}")
    unknown = [key for key in row if key not in FIELDS and not key.startswith("_")]
    if unknown:
        raise EvaluationError(
            f"{place}: unknown key {quote(unknown[0])}; known are {listed(FIELDS)}, and keys that begin with _ are "
            "ignored"
        )
    question = Question(
        id=_id(place, row.get("id", number)),
        question=_text(place, "question", row.get("question")),
        answers=_several(place, row, "answers", "answer"),
        choices=_several(place, row, "choices"),
        contexts=_several(place, row, "contexts", "context"),
        domain=_text(place, "domain", row["domain"]) if row.get("domain") else "",
        task=path.stem,
    )
    _check_answers(place, question)
    if "split" in row and not isinstance(row["split"], str):
        raise EvaluationError(f"{place}: split must be a string, not {quote(row['split'])}")
    return question, row.get("split") == "shots"


def _check_answers(place: str, question: Question) -> None:
    if not question.answers:
        raise EvaluationError(f"{place}: it has no answers; give answers (a list) or answer (a string)")
    if not question.choices:
        return
    if len(question.choices) > len(LETTERS):
        raise EvaluationError(f"{place}: it has {len(question.choices)} choices; at most {len(LETTERS)} have letters")
    if len(question.answers) != 1 or question.answers[0] not in question.choices:
        raise EvaluationError(
            f"{place}: with choices the answer must be the text of one of them, not {quote(list(question.answers))}; "
            f"choices are {quote(list(question.choices))}"
        )


def _id(place: str, value: object) -> str:
    if isinstance(value, bool) or not isinstance(value, (str, int)) or value == "":
        raise EvaluationError(f"{place}: id must be a non-empty string or an integer, not {quote(value)}")
    return _encodable(place, "id", str(value))


def _text(place: str, key: str, value: object) -> str:
    if not isinstance(value, str) or not value.strip():
        raise EvaluationError(f"{place}: {key} must be a non-empty string, not {quote(value)}")
    return _encodable(place, key, value)


def _encodable(place: str, key: str, value: str) -> str:
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise EvaluationError(
            f"{place}: {key} contains the lone surrogate {quote(value[error.start])}, which is not a character; "
            "replace it"
        ) from None
    return value


def _several(place: str, row: Mapping[str, Any], plural: str, singular: str = "") -> tuple[str, ...]:
    """Returns the texts of a key with a list, or of its singular with one text; empty if neither is given."""
    given = [key for key in (plural, singular) if row.get(key) is not None]
    if len(given) == 2:
        raise EvaluationError(f"{place}: it has both {plural} and {singular}; give one of them")
    if not given:
        return ()
    if given == [singular]:
        return (_text(place, singular, row[singular]),)
    if not isinstance(row[plural], list):
        raise EvaluationError(f"{place}: {plural} must be a list of strings, not {quote(row[plural])}")
    return tuple(_text(place, f"each of {plural}", value) for value in row[plural])
