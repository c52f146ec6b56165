"""Temperatures and weights of members by the likelihood of reference answers, without generating."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from gac_core.calibration.mixture import Mixture, Values, fit_mixture
from gac_core.calibration.temperature import GRID, Temperature, best_temperature
from gac_core.config import EnsembleConfig
from gac_core.ensemble import Ensemble
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.questions import Question
from gac_core.evaluation.task import Task

BATCH = 16
"""Texts that are measured at once."""

Progress = Callable[[str, int, int], None]
"""Receives what is done, how many of it are done, and how many there are."""

Messages = str | list[dict[str, str]]


@dataclass(frozen=True)
class Reference:
    """A question's prompt and its first accepted answer.

    Attributes:
        question: The question.
        prompt: Its prompt.
        text: The answer, as it follows the prompt.
    """

    question: Question
    prompt: Messages
    text: str

    @property
    def pair(self) -> tuple[Messages, str]:
        """Prompt and answer."""
        return self.prompt, self.text


def references(tasks: Sequence[Task]) -> tuple[list[Reference], list[Reference]]:
    """Returns the reference answers of the half to choose on, and of that to report on.

    Raises:
        EvaluationError: A half has no questions.
    """
    found = [
        Reference(question, task.prompt(question).prompt, task.form.reference(question))
        for task in tasks
        for question in task.questions.questions
    ]
    choose = [each for each in found if each.question.half == "choose"]
    report = [each for each in found if each.question.half == "report"]
    if not choose or not report:
        raise EvaluationError(
            f"calibration chooses on one half of the questions and reports on the other, but of {len(found)} questions "
            f"{len(choose)} are in the first half and {len(report)} in the second; give more questions, 100 or more"
        )
    return choose, report


@dataclass(frozen=True)
class Fit:
    """What reference answers say about members.

    Attributes:
        temperatures: By member.
        mixture: Their weights.
        tokens: How many tokens of the union the weights were chosen on.
    """

    temperatures: Mapping[str, Temperature]
    mixture: Mixture
    tokens: int

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Fit:
        """Returns a fit of plain values: the fields, nested."""
        mixture = {**values["mixture"], "hurts": tuple(values["mixture"]["hurts"])}
        temperatures = {name: Temperature(**own) for name, own in values["temperatures"].items()}
        return cls(temperatures, Mixture(**mixture), values["tokens"])


def plain(config: EnsembleConfig, temperatures: Mapping[str, float] | None = None) -> EnsembleConfig:
    """Returns a configuration with equal weights, without threshold and gate, and with the given temperatures.

    Args:
        config: The ensemble.
        temperatures: By member. Default 1 each.
    """
    members = tuple(
        replace(member, weight=1.0, temperature=(temperatures or {}).get(member.called, 1.0))
        for member in config.members
    )
    return replace(config, members=members, weights=None, calibration=None, gate=None, threshold=None)


def fit(config: EnsembleConfig, tasks: Sequence[Task], progress: Progress) -> Fit:
    """Returns temperatures, and weights of the members with these temperatures.

    Args:
        config: The ensemble, of two members or more.
        tasks: The questions.
        progress: Receives how far it is.

    Raises:
        EvaluationError: A half has no questions.
        GaCError: A member failed.
    """
    choose, report = references(tasks)
    with Ensemble.from_config(plain(config)) as ensemble:
        temperatures = _temperatures(ensemble, choose, report, progress)
        # Members are shared with this ensemble, which stays open until then.
        values = {name: own.value for name, own in temperatures.items()}
        with Ensemble.from_config(plain(config, values)) as scaled:
            chosen, held_out = (
                member_probabilities(scaled, own, progress, what)
                for own, what in ((choose, "weights, first half"), (report, "weights, second half"))
            )
    return Fit(temperatures, fit_mixture(config.names, chosen, held_out), len(chosen))


def _temperatures(
    ensemble: Ensemble, choose: Sequence[Reference], report: Sequence[Reference], progress: Progress
) -> dict[str, Temperature]:
    """Returns a temperature for each member, with its effect on the other half."""
    totals = {name: np.zeros(len(GRID)) for name in ensemble.names}
    for batch in _batches(choose, progress, "temperatures, first half"):
        for found in ensemble.continuation_likelihoods([each.pair for each in batch], GRID):
            for name, own in found.items():
                totals[name] -= np.array([each.logprob for each in own])
    best = {name: best_temperature(list(nll)) for name, nll in totals.items()}
    at = list(best.values())
    sums = {name: np.zeros(3) for name in best}
    for batch in _batches(report, progress, "temperatures, second half"):
        for found in ensemble.continuation_likelihoods([each.pair for each in batch], [1.0, *at]):
            for index, name in enumerate(best):
                own = found[name]
                sums[name] += (-own[0].logprob, -own[index + 1].logprob, own[0].tokens)
    return {
        name: Temperature(best[name], float(before / tokens), float(after / tokens), int(tokens))
        for name, (before, after, tokens) in sums.items()
    }


def member_probabilities(ensemble: Ensemble, references: Sequence[Reference], progress: Progress, what: str) -> Values:
    """Returns the probability that each member gives each union token of the reference answers.

    Returns:
        Float64, shape ``[tokens, members]``.
    """
    rows: list[list[float]] = []
    for batch in _batches(references, progress, what):
        for score in ensemble.score_batch([each.pair for each in batch], token_stats=True, threshold=None):
            for token in score.token_stats or ():
                own = {each.member: each.selected for each in token.members}
                rows.append([own.get(name, 0.0) for name in ensemble.names])
    return np.array(rows)


def _batches(items: Sequence[Reference], progress: Progress, what: str) -> Iterator[Sequence[Reference]]:
    for start in range(0, len(items), BATCH):
        progress(what, start, len(items))
        yield items[start : start + BATCH]
    progress(what, len(items), len(items))


def stored_fit(path: Path | None, key: Mapping[str, Any], make: Callable[[], Fit]) -> Fit:
    """Returns the fit in a file if it is that of the same data and members; else makes one and writes it.

    Args:
        path: The file. None: nothing is kept.
        key: What the fit depends on, as plain values.
        make: Makes a fit.

    Raises:
        EvaluationError: The file cannot be written.
    """
    wanted = json.loads(json.dumps(key))
    if path is not None and path.exists():
        try:
            stored = json.loads(path.read_text(encoding="utf-8"))
            if stored["key"] == wanted:
                return Fit.of(stored["fit"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise EvaluationError(f"cannot read {path}: {error}; remove the file to begin anew") from error
    found = make()
    if path is not None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps({"key": wanted, "fit": asdict(found)}, indent=1), encoding="utf-8")
        except OSError as error:
            raise EvaluationError(f"cannot write {path}: {error.strerror or error}") from error
    return found
