"""Answers and the file that keeps them: JSON lines, so that an interrupted run continues."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gac_core.errors import quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.header import Header
from gac_core.evaluation.questions import Half, half_of
from gac_core.evaluation.settings import Setting
from gac_core.output import MemberStats

logger = logging.getLogger(__name__)
VERSION = 1
Key = tuple[str, str, str]


@dataclass(frozen=True)
class Answer:
    """One answer: a line of the results file.

    Attributes:
        setting: Label of the setting.
        task: Name of the set of questions.
        id: Id of the question.
        text: The answer; with several samples the first of the most frequent ones.
        scores: Value of each metric, 0 to 1; the first one counts.
        steps: Steps, over all samples.
        ensembled: Steps at which all members were combined.
        members: Work of each participating member, by name.
        seconds: Wall time of its batch, divided by the number of answers in it.
        confidence: Product of the probabilities of its tokens; with several samples the share of them that agree with
            it. None where it has no tokens.
        finish: Why it ended: ``"stop"`` or ``"length"``; with several samples that of the first one.
        samples: The texts, with several samples; else empty.
        error: Why there is no answer; None if there is one.
    """

    setting: str
    task: str
    id: str
    text: str
    scores: Mapping[str, float]
    steps: int = 0
    ensembled: int = 0
    members: Mapping[str, MemberStats] = field(default_factory=dict)
    seconds: float = 0.0
    confidence: float | None = None
    finish: str = "stop"
    samples: tuple[str, ...] = ()
    error: str | None = None

    @property
    def key(self) -> Key:
        """Setting, task and id."""
        return self.setting, self.task, self.id

    @property
    def half(self) -> Half:
        """The half that its question belongs to."""
        return half_of(self.task, self.id)

    @property
    def evaluations(self) -> int:
        """Distributions that selected its tokens: one for each member and step; the gate's alone where it decides."""
        return self.steps + max(0, len(self.members) - 1) * self.ensembled

    @property
    def score(self) -> float:
        """Value of the first metric."""
        return next(iter(self.scores.values()))

    @property
    def correct(self) -> bool:
        """Whether the first metric is at least one half."""
        return self.score >= 0.5


class Results:
    """The answers so far; kept in a file if it has one.

    Args:
        header: What the answers have in common.
        path: The file. It is continued if it exists; questions that failed are asked again. None (default): nothing is
            kept on disk.

    Raises:
        EvaluationError: The file cannot be read or written, or has the answers of another run.
    """

    def __init__(self, header: Header, path: str | Path | None = None) -> None:
        self.header = header
        self.path = None if path is None else Path(path)
        self.settings: dict[str, Setting] = {}
        self.answers: dict[Key, Answer] = {}
        if self.path is not None and self.path.exists() and self.path.stat().st_size:
            self._read(self.path)
        elif self.path is not None:
            self._append([{"type": "header", "version": VERSION, **asdict(header)}])

    def of(self, setting: str, task: str | None = None) -> list[Answer]:
        """Returns the answers of a setting, of one task or of all."""
        return [each for each in self.answers.values() if each.setting == setting and task in (None, each.task)]

    def use(self, setting: Setting) -> None:
        """Records what a label stands for; raises if the file uses it for something else."""
        known = self.settings.get(setting.label)
        if known is not None and known != setting:
            raise EvaluationError(
                f"{self.path}: the setting {quote(setting.label)} is {quote(known.as_dict())} in the file and "
                f"{quote(setting.as_dict())} now; choose another file with --out"
            )
        if known is None:
            self.settings[setting.label] = setting
            self._append([{"type": "setting", **setting.as_dict()}])

    def add(self, answers: Sequence[Answer]) -> None:
        """Adds answers and writes them to the file."""
        self.answers.update({answer.key: answer for answer in answers})
        self._append([{"type": "answer", **asdict(answer)} for answer in answers])

    def _append(self, lines: Sequence[Mapping[str, Any]]) -> None:
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with self.path.open("a", encoding="utf-8") as file:
                file.write("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
        except OSError as error:
            raise EvaluationError(f"cannot write the results {self.path}: {error.strerror or error}") from error

    def _read(self, path: Path) -> None:
        header, settings, answers = read_lines(path)
        difference = self.header.difference(header)
        if difference is not None:
            raise EvaluationError(
                f"{path} has the results of another run, which differs in {difference}; choose another file, or "
                "remove it"
            )
        self.settings = settings
        self.answers = {key: answer for key, answer in answers.items() if answer.error is None}


def read_lines(path: Path) -> tuple[Header, dict[str, Setting], dict[Key, Answer]]:
    """Returns the content of a results file; an incomplete last line is removed from the file.

    Raises:
        EvaluationError: It is not a results file, or a line other than the last one is damaged.
    """
    try:
        data = path.read_bytes()
        complete, _, torn = data.rpartition(b"\n")
        rows = [_line(path, number, line) for number, line in enumerate(complete.split(b"\n"), 1) if complete]
        if not rows or rows[0].pop("type") != "header" or rows[0].pop("version", None) != VERSION:
            raise EvaluationError(f"{path} is not a results file of gac eval (version {VERSION}); choose another file")
        if torn:
            logger.warning("the last line of %s is incomplete and is removed: its answer is computed again", path)
            with path.open("r+b") as file:
                file.truncate(len(data) - len(torn))
    except OSError as error:
        raise EvaluationError(f"cannot read the results {path}: {error.strerror or error}") from error
    settings: dict[str, Setting] = {}
    answers: dict[Key, Answer] = {}
    number = 1
    try:
        header = Header(**rows[0])
        for number, row in enumerate(rows[1:], 2):  # noqa: B007 - the error names it
            if row.pop("type") == "setting":
                settings[row["label"]] = Setting(**row)
            else:
                answer = _answer(row)
                answers[answer.key] = answer
    except (TypeError, KeyError, AttributeError) as error:
        raise EvaluationError(f"{path}, line {number}: it is damaged: {error}; remove it") from error
    return header, settings, answers


def _line(path: Path, number: int, line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise EvaluationError(
            f"{path}, line {number}: it is damaged: {error}; remove the line, or choose another file"
        ) from error
    if not isinstance(row, dict) or "type" not in row:
        raise EvaluationError(f"{path}, line {number}: it is not a line of a results file; choose another file")
    return row


def _answer(row: Mapping[str, Any]) -> Answer:
    members = {name: MemberStats(**work) for name, work in row["members"].items()}
    return Answer(**{**row, "members": members, "samples": tuple(row["samples"])})
