"""The questions of one file, with how they are asked and scored."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gac_core.evaluation.metrics import Metric
from gac_core.evaluation.prompts import Examples, Prompt, PromptForm, with_examples
from gac_core.evaluation.questions import Question, QuestionSet


@dataclass(frozen=True)
class Task:
    """The questions of one file, with how they are asked and scored.

    Attributes:
        questions: The questions to ask.
        examples: The examples of few-shot prompts.
        form: From questions to prompts.
        metrics: One or more; the first one counts.
    """

    questions: QuestionSet
    examples: Examples
    form: PromptForm
    metrics: tuple[Metric, ...]

    @property
    def name(self) -> str:
        """Name of the set."""
        return self.questions.name

    def prompt(self, question: Question) -> Prompt:
        """Returns the prompt of a question."""
        return self.form.prompt(question, self.examples.of(question))

    def scores(self, text: str, question: Question) -> dict[str, float]:
        """Returns the value of each metric."""
        return {metric.name: metric.score(text, question) for metric in self.metrics}


def make_task(questions: QuestionSet, form: PromptForm, metrics: Sequence[Metric]) -> Task:
    """Returns a task.

    Raises:
        EvaluationError: There are too few examples, or a metric cannot score a question.
    """
    rest, examples = with_examples(questions, form)
    for metric in metrics:
        for question in rest.questions:
            metric.check(question)
    return Task(rest, examples, form, tuple(metrics))


def count_questions(tasks: Sequence[Task]) -> int:
    """Returns the number of questions of all tasks."""
    return sum(len(task.questions.questions) for task in tasks)
