"""From questions to prompts."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from gac_core.checks import check_int, check_option
from gac_core.errors import quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.questions import LETTERS, Question, QuestionSet

FORMS = ("chat", "plain", "raw")
MAX_SHOTS = 5
_SHORT = "Answer the question. Give only the answer, in as few words as possible."
_PASSAGES = "Answer the question from the passages. Give only the answer, in as few words as possible."
_CHOICE = "Answer the multiple-choice question. Give only the letter of the right choice."
_SOLUTION = "Solve the problem step by step. End with a line that has #### and the result as a number."
# The calculator annotations in the solutions of GSM8K.
_ANNOTATION = re.compile(r"<<[^<>\n]*>>")


@dataclass(frozen=True)
class Prompt:
    """The prompt of one question.

    Attributes:
        prompt: A string, or a list of messages.
        stop: Strings that end the answer.
        max_tokens: Maximum number of tokens of the answer.
        keeps_stop: Whether the stop string that ended it is part of the answer.
    """

    prompt: str | list[dict[str, str]]
    stop: tuple[str, ...]
    max_tokens: int
    keeps_stop: bool = False


@dataclass(frozen=True)
class PromptForm:
    """How questions become prompts.

    Attributes:
        kind: ``"chat"``: messages, rendered by each member's chat template; examples are earlier turns. ``"plain"``:
            text of ``Question: ... Answer: ...``, for base models and few-shot prompts. ``"raw"``: the question is the
            whole prompt, for texts to be continued.
        instruction: The system message, or the first paragraph of plain text. None (default): one that fits the
            question in a chat, and none in plain text.
        shots: Number of examples before the question, 0 or more. None (default): those of the set, 5 at most.
        max_tokens: Maximum number of tokens of an answer. None (default): 4 for a letter in plain text, 400 for a
            solution, otherwise 32.
        stop: Strings that end an answer, in place of those of the form. None (default): a letter or a line break in
            plain text, a blank line after a solution, and none in the other forms.
        solutions: Whether answers are worked solutions of several lines that end with ``#### NUMBER``. Default False.
    """

    kind: Literal["chat", "plain", "raw"] = "chat"
    instruction: str | None = None
    shots: int | None = None
    max_tokens: int | None = None
    stop: tuple[str, ...] | None = None
    solutions: bool = False

    def __post_init__(self) -> None:
        check_option(EvaluationError, "form", self.kind, FORMS)
        if self.shots is not None:
            check_int(EvaluationError, "shots", self.shots, 0)
        if self.max_tokens is not None:
            check_int(EvaluationError, "max_tokens", self.max_tokens, 1)
        if self.kind == "raw" and self.shots:
            raise EvaluationError(
                f"the raw form has no examples, not shots={self.shots}; write them into the questions"
            )

    def prompt(self, question: Question, shots: Sequence[Question] = ()) -> Prompt:
        """Returns the prompt of a question.

        Args:
            question: The question.
            shots: The examples before it, in order.
        """
        letters = self.kind == "plain" and bool(question.choices) and self.stop is None
        most = self.max_tokens or (4 if letters else 400 if self.solutions else 32)
        if self.kind == "chat":
            return Prompt(self._messages(question, shots), self.stop or (), most)
        if self.kind == "raw":
            return Prompt(question.question, self.stop or (), most)
        if letters:
            # The answer is known with its first letter.
            return Prompt(self._text(question, shots), tuple(LETTERS[: len(question.choices)]), most, True)
        stop = ("\n\n", "\nQuestion:") if self.solutions else ("\n",)
        return Prompt(self._text(question, shots), stop if self.stop is None else self.stop, most)

    def reference(self, question: Question) -> str:
        """Returns the first accepted answer as it would follow the prompt of a question."""
        answer = self._answer(question)
        return answer if self.kind == "chat" else f" {answer}"

    def _text(self, question: Question, shots: Sequence[Question]) -> str:
        begin = f"{self.instruction}\n\n" if self.instruction else ""
        shown = "".join(f"{_asked(shot)} {self._answer(shot)}\n\n" for shot in shots)
        return f"{begin}{shown}{_asked(question)}"

    def _messages(self, question: Question, shots: Sequence[Question]) -> list[dict[str, str]]:
        messages = [{"role": "system", "content": self.instruction}] if self.instruction else []
        if self.instruction is None:
            messages = [{"role": "system", "content": self._instruction(question)}]
        for shot in shots:
            messages += [
                {"role": "user", "content": _request(shot)},
                {"role": "assistant", "content": self._answer(shot)},
            ]
        return [*messages, {"role": "user", "content": _request(question)}]

    def _instruction(self, question: Question) -> str:
        if self.solutions:
            return _SOLUTION
        if question.choices:
            return _CHOICE
        return _PASSAGES if question.contexts else _SHORT

    def _answer(self, shot: Question) -> str:
        if shot.choices:
            return shot.letters[0]
        return _ANNOTATION.sub("", shot.answers[0]) if self.solutions else shot.answers[0]


def _choices(question: Question) -> str:
    return "".join(f"\n{letter}. {text}" for letter, text in zip(LETTERS, question.choices, strict=False))


def _asked(question: Question) -> str:
    """Returns a question as plain text, up to ``Answer:``."""
    passages = "".join(f"Passage: {passage}\n" for passage in question.contexts)
    return f"{passages}Question: {question.question}{_choices(question)}\nAnswer:"


def _request(question: Question) -> str:
    """Returns a question as the content of a message."""
    asked = f"{question.question}{_choices(question)}"
    if not question.contexts:
        return asked
    return "Passages:\n\n" + "\n\n".join(question.contexts) + f"\n\nQuestion: {asked}"


@dataclass(frozen=True)
class Examples:
    """The examples of a set: those of a question's domain, or those without a domain.

    Attributes:
        by_domain: Examples by domain; the key ``""`` has those of questions whose set has no examples with domains.
    """

    by_domain: Mapping[str, tuple[Question, ...]]

    def of(self, question: Question) -> tuple[Question, ...]:
        """Returns the examples for a question."""
        return self.by_domain[question.domain if question.domain in self.by_domain else ""]


def with_examples(questions: QuestionSet, form: PromptForm) -> tuple[QuestionSet, Examples]:
    """Returns the questions to ask, and the examples for their prompts.

    The examples are the set's lines with ``"split": "shots"``, those of the question's domain where they have domains.
    If the set has none and the form wants some, the first questions (of each domain) are the examples, and are not
    asked.

    Raises:
        EvaluationError: There are too few examples.
    """
    shots = questions.shots
    wanted = form.shots
    if not shots and wanted:
        shots = _first(questions.questions, wanted)
        taken = {shot.id for shot in shots}
        rest = tuple(each for each in questions.questions if each.id not in taken)
        questions = replace(questions, questions=rest)
    groups: dict[str, list[Question]] = {}
    for shot in shots:
        groups.setdefault(shot.domain, []).append(shot)
    count = MAX_SHOTS if wanted is None else wanted
    examples = {domain: tuple(group[:count]) for domain, group in groups.items()}
    if not examples or count == 0:
        return questions, Examples({"": ()})
    _check_examples(questions, examples, wanted)
    return questions, Examples(examples)


def _first(questions: Sequence[Question], count: int) -> tuple[Question, ...]:
    """Returns the first questions of each domain."""
    counts: dict[str, int] = {}
    first = []
    for question in questions:
        counts[question.domain] = counts.get(question.domain, 0) + 1
        if counts[question.domain] <= count:
            first.append(question)
    return tuple(first)


def _check_examples(questions: QuestionSet, examples: Mapping[str, Sequence[Question]], wanted: int | None) -> None:
    if not questions.questions:
        raise EvaluationError(f"{questions.path} has no questions left after {wanted} examples; ask for fewer shots")
    for domain in {question.domain for question in questions.questions}:
        group = examples.get(domain, examples.get("", ()))
        if not group or len(group) < (wanted or 0):
            of = f" of the domain {quote(domain)}" if domain else ""
            few = "where one or more are needed" if wanted is None else f"fewer than shots={wanted}"
            raise EvaluationError(
                f"{questions.path} has {len(group)} examples{of} (lines with split=shots), {few}; add some, or ask for "
                "fewer shots"
            )
