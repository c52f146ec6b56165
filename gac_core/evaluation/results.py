"""Answers and the file that keeps them: JSON lines, so that an interrupted run continues."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from gac_core.config import EnsembleConfig
from gac_core.errors import listed, quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import Half, QuestionSet, half_of
from gac_core.evaluation.settings import Setting

logger = logging.getLogger(__name__)
VERSION = 1
Key = tuple[str, str, str]
# Fields of a member that determine where it runs and what it may load, not its answers.
_PLACEMENT = ("device", "device_map", "compile", "num_gpus", "num_cpus", "resources", "trust_remote_code")


@dataclass(frozen=True)
class Work:
    """What one member computed for an answer.

    Attributes:
        prompt_tokens: Length of the prompt in its tokens; of all samples together, if there are several.
        forwards: Forward passes.
        tokens: Tokens computed, prompt included.
        reused_tokens: Prompt tokens found in its KV cache.
        seconds: Its share of the time of these forwards.
    """

    prompt_tokens: int = 0
    forwards: int = 0
    tokens: int = 0
    reused_tokens: int = 0
    seconds: float = 0.0


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
    members: Mapping[str, Work] = field(default_factory=dict)
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
    def score(self) -> float:
        """Value of the first metric."""
        return next(iter(self.scores.values()))

    @property
    def correct(self) -> bool:
        """Whether the first metric is at least one half."""
        return self.score >= 0.5


@dataclass(frozen=True)
class Header:
    """What the answers of a file have in common; a run with another header is refused.

    Attributes:
        data: Digest of each file, by name of the task.
        members: Name of each member, and fields of its configuration that answers depend on, in order; without
            defaults.
        ensemble: Settings of the ensemble that answers depend on.
        form: Fields of the `PromptForm` of each task, without defaults.
        metrics: Names of the metrics of each task; the first one counts.
    """

    data: Mapping[str, str]
    members: Sequence[Mapping[str, Any]]
    ensemble: Mapping[str, Any]
    form: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Sequence[str]]

    def difference(self, other: Header) -> str | None:
        """Returns what differs, as text; None if nothing does."""
        ours, theirs = json.loads(json.dumps(asdict(self))), json.loads(json.dumps(asdict(other)))
        for name in ours:
            if ours[name] != theirs[name]:
                if name == "data":
                    return f"the questions: {_other_questions(ours[name], theirs[name])}"
                return f"{name}: {_first_difference(ours[name], theirs[name])}"
        return None


def _other_questions(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Returns how the questions of two runs differ, from the digest of each file."""
    if ours.keys() == theirs.keys():
        changed = [name for name in ours if ours[name] != theirs[name]]
        return f"those of {listed(map(quote, changed))} are not the same as in the file"
    return f"{listed(map(quote, theirs))} in the file, {listed(map(quote, ours))} now"


def _first_difference(ours: Any, theirs: Any) -> str:
    """Returns the innermost values that differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            if ours.get(key) != theirs.get(key):
                return f"{key}: {_first_difference(ours.get(key), theirs.get(key))}"
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = ((one, other) for one, other in zip(ours, theirs, strict=True) if one != other)
        return _first_difference(*next(pairs))
    return f"{quote(theirs)} in the file, {quote(ours)} now"


def header_of(
    config: EnsembleConfig,
    sets: Iterable[QuestionSet],
    forms: Mapping[str, PromptForm],
    metrics: Mapping[str, Sequence[str]],
) -> Header:
    """Returns the header of a run.

    Args:
        config: The ensemble.
        sets: The questions.
        forms: Form of the prompts, by name of the set.
        metrics: Names of the metrics, by name of the set.
    """
    settings = ("combine", "gate_rule", "alignment", "commit", "deterministic")
    sources = {"weights": config.weights} if isinstance(config.weights, str) else {}
    gate = {} if config.gate is None else {"gate": config.gate}
    return Header(
        {each.name: each.digest for each in sets},
        [{**_set_fields(member, _PLACEMENT), "name": member.called} for member in config.members],
        {key: getattr(config, key) for key in settings} | sources | gate,
        {name: _set_fields(form) for name, form in forms.items()},
        {name: list(names) for name, names in metrics.items()},
    )


def _set_fields(values: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the fields of a dataclass that differ from their defaults."""
    every = {each.name: (getattr(values, each.name), each.default) for each in fields(values)}
    return {name: value for name, (value, default) in every.items() if value != default and name not in without}


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
    members = {name: Work(**work) for name, work in row["members"].items()}
    return Answer(**{**row, "members": members, "samples": tuple(row["samples"])})
