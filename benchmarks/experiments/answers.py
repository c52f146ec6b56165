"""Answers with their tokens, and the file that keeps them."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from gac_core import Ensemble
from gac_core.evaluation.questions import Question
from gac_core.evaluation.settings import Setting
from gac_core.evaluation.task import Task

ROUND = 32


@dataclass(frozen=True)
class TokenAnswer:
    """One answer.

    Attributes:
        task: Name of the set of questions.
        id: Id of the question.
        setting: Label of the setting.
        beginning: The beginning of the answer that was given with the prompt; empty for none.
        text: The answer, with the beginning.
        tokens: Its tokens after the beginning, in hexadecimal, that with the stop string included.
        confidence: Product of the probabilities of its tokens.
        exact: Whether it equals an accepted answer.
        contains: Whether it contains one.
    """

    task: str
    id: str
    setting: str
    beginning: str
    text: str
    tokens: tuple[str, ...]
    confidence: float
    exact: bool
    contains: bool

    @property
    def key(self) -> tuple[str, str, str, str]:
        """Task, id, setting and beginning."""
        return self.task, self.id, self.setting, self.beginning

    @property
    def token_bytes(self) -> list[bytes]:
        """The tokens as bytes."""
        return [bytes.fromhex(token) for token in self.tokens]


class AnswerFile:
    """Answers by key, appended to a file of JSON lines.

    Args:
        path: The file; it is continued if it exists.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
        read = [TokenAnswer(**{**row, "tokens": tuple(row["tokens"])}) for row in map(json.loads, lines)]
        self.answers = {answer.key: answer for answer in read}

    def add(self, answers: Iterable[TokenAnswer]) -> None:
        """Adds answers."""
        added = list(answers)
        self.answers.update({answer.key: answer for answer in added})
        self._path.parent.mkdir(parents=True, exist_ok=True)
        with self._path.open("a", encoding="utf-8") as file:
            file.write("".join(json.dumps(asdict(answer)) + "\n" for answer in added))


def answer_all(
    ensemble: Ensemble,
    task: Task,
    settings: Sequence[Setting],
    asked: Sequence[tuple[Question, str]],
    file: AnswerFile,
) -> None:
    """Answers the questions that the file lacks, in rounds of 32 of which every setting answers all.

    Args:
        ensemble: Answers with every setting.
        task: The questions' prompts and metrics; their texts are plain.
        settings: The settings.
        asked: Each question with the beginning of its answer, empty for none.
        file: Keeps the answers.
    """
    for start in range(0, len(asked), ROUND):
        for setting in settings:
            part = asked[start : start + ROUND]
            todo = [(q, begun) for q, begun in part if (task.name, q.id, setting.label, begun) not in file.answers]
            if todo:
                file.add(_answers(ensemble, task, setting, todo))
        print(f"{task.name}: {min(start + ROUND, len(asked))} of {len(asked)}", flush=True)


def _answers(
    ensemble: Ensemble, task: Task, setting: Setting, asked: Sequence[tuple[Question, str]]
) -> list[TokenAnswer]:
    prompts = [task.prompt(question) for question, _ in asked]
    outputs = ensemble.generate_batch(
        [f"{prompt.prompt}{begun}" for prompt, (_, begun) in zip(prompts, asked, strict=True)],
        stop=prompts[0].stop,
        max_tokens=prompts[0].max_tokens,
        token_stats=True,
        drafts=False,
        **setting.overrides(),
    )
    answers = []
    for (question, begun), output in zip(asked, outputs, strict=True):
        stats, text = output.token_stats or (), begun + output.text
        scores = task.scores(text, question)
        answers.append(
            TokenAnswer(
                task.name,
                question.id,
                setting.label,
                begun,
                text,
                tuple(token.token.hex() for token in stats if token.token),
                math.prod(token.confidence for token in stats),
                scores["exact"] == 1,
                scores["contains"] == 1,
            )
        )
    return answers
