"""Calibrates an ensemble: temperatures and weights, then answers, a threshold, and how reliable confidence is."""

from __future__ import annotations

import datetime
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from gac_core.calibration.fit import BATCH, Fit, Progress, fit, plain, stored_fit
from gac_core.calibration.reliability import Reliability, reliability
from gac_core.calibration.thresholds import Threshold, ThresholdSearch
from gac_core.calibration.traces import Trace, Traces
from gac_core.calibration_file import CalibratedMember, Calibration, MadeFrom
from gac_core.config import EnsembleConfig
from gac_core.ensemble import Ensemble
from gac_core.errors import listed, quote
from gac_core.evaluation.comparing import best_member
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.header import header_of
from gac_core.evaluation.questions import Half, Question
from gac_core.evaluation.results import Answer, Results
from gac_core.evaluation.run import run
from gac_core.evaluation.settings import Setting, alone, every_step
from gac_core.evaluation.task import Task
from gac_core.output import RequestOutput

MIN_DOMAIN = 10
"""Answers of a domain below which it has no diagram of its own."""


@dataclass(frozen=True)
class Goal:
    """What the threshold shall reach; without a value the accuracy of every step.

    Attributes:
        accuracy: Wanted mean of the first metric, 0 to 1.
        share: Largest share of steps to ensemble, 0 to 1; excludes ``accuracy``.
        gate: Name of the gate. None (default): the member that answers best alone, of those with a weight.
    """

    accuracy: float | None = None
    share: float | None = None
    gate: str | None = None

    def __post_init__(self) -> None:
        if self.accuracy is not None and self.share is not None:
            raise EvaluationError(f"give --accuracy {self.accuracy:g} or --share {self.share:g}, not both")


@dataclass(frozen=True)
class Outcome:
    """What a calibration came to.

    Attributes:
        calibration: The calibration.
        fit: Temperatures and weights, with their likelihoods.
        gate: Name of the gate.
        threshold: The threshold; None where one member alone has a weight.
        alone: Mean score of each member alone on the half that is reported.
        unscaled: By member, the calibration of its own answers without its temperature.
        scaled: By member, the same with it.
        reliability: Of every setting: over all answers, and by task and domain.
    """

    calibration: Calibration
    fit: Fit
    gate: str
    threshold: Threshold | None
    alone: Mapping[str, float]
    unscaled: Mapping[str, Reliability]
    scaled: Mapping[str, Reliability]
    reliability: tuple[Reliability, ...]


def calibrate(
    config: EnsembleConfig,
    tasks: Sequence[Task],
    goal: Goal,
    progress: Progress,
    results_path: Path | None = None,
) -> Outcome:
    """Returns the calibration of an ensemble; models are loaded once.

    Args:
        config: The ensemble, of two members or more; its weights, temperatures and threshold are not used.
        tasks: The questions.
        goal: What the threshold shall reach.
        progress: Receives how far it is.
        results_path: Answers, which another call continues; files beside it keep the fit and traces. Default: memory.

    Raises:
        EvaluationError: The questions cannot be used, one could not be answered, or no threshold reaches the goal.
        GaCError: A member failed.
    """
    _check(config, tasks, goal)
    names = config.names
    with Ensemble.from_config(plain(config)):
        # Open all the time, so that models stay loaded between the views of them.
        key = asdict(header_of(plain(config), tasks))
        found = stored_fit(_beside(results_path, "fit.json"), key, lambda: fit(config, tasks, progress))
        scaled = plain(config, {name: own.value for name, own in found.temperatures.items()})
        weights = {name: round(weight, 4) for name, weight in found.mixture.weights.items()}
        results = Results(header_of(scaled, tasks), results_path)
        traces = Traces(_beside(results_path, "traces.jsonl"))
        combined = every_step(names, list(weights.values()))
        with Ensemble.from_config(scaled) as ensemble:
            _answer(ensemble, tasks, combined, results, traces, progress)
            voters = [name for name in names if weights[name]]
            gate = goal.gate or best_member(voters, _half(tasks, "choose"), results)
            threshold = None
            if len(voters) > 1:
                search = ThresholdSearch(ensemble, tasks, results, traces, combined, gate)
                progress("threshold", 0, 1)
                threshold = search.find(goal.accuracy, goal.share)
                progress("threshold", 1, 1)
            unscaled, own = _members_reliability(ensemble, tasks, results, found, progress)
    return Outcome(
        calibration=Calibration(
            members={
                name: CalibratedMember(weights[name], found.temperatures[name].value, name in found.mixture.hurts)
                for name in names
            },
            gate=gate,
            threshold=None if threshold is None else threshold.value,
            combine=config.combine,
            gate_rule="confidence",
            made_from=_made_from(tasks),
        ),
        fit=found,
        gate=gate,
        threshold=threshold,
        alone={name: _mean([each for each in results.of(name) if each.half == "report"]) for name in names},
        unscaled=unscaled,
        scaled=own,
        reliability=tuple(_reliability(tasks, results, [*names, combined.label])),
    )


def _check(config: EnsembleConfig, tasks: Sequence[Task], goal: Goal) -> None:
    if len(config.members) < 2:
        raise EvaluationError(
            f"{quote(config.names[0])} is the only member, so that there is nothing to weigh; give two models or more"
        )
    if config.combine != "arithmetic" or config.gate_rule != "confidence":
        raise EvaluationError(
            "weights are chosen for combine='arithmetic' and thresholds for gate_rule='confidence', not "
            f"{quote(config.combine)} and {quote(config.gate_rule)}; leave them out of the configuration"
        )
    if goal.gate is not None and goal.gate not in config.names:
        raise EvaluationError(f"the gate {quote(goal.gate)} is not a member; members are: {listed(config.names)}")
    if not tasks:
        raise EvaluationError("there are no questions; give --data FILE.jsonl")


def _half(tasks: Sequence[Task], half: Half) -> list[Task]:
    return [replace(task, questions=task.questions.limited(half=half)) for task in tasks]


def _beside(path: Path | None, ending: str) -> Path | None:
    return None if path is None else path.with_name(f"{path.name}.{ending}")


def _made_from(tasks: Sequence[Task]) -> MadeFrom:
    return MadeFrom(
        data=", ".join(task.questions.path.name for task in tasks),
        questions=sum(len(task.questions.questions) for task in tasks),
        metric=", ".join(dict.fromkeys(task.metrics[0].name for task in tasks)),
        date=datetime.date.today().isoformat(),
    )


def _answer(
    ensemble: Ensemble,
    tasks: Sequence[Task],
    combined: Setting,
    results: Results,
    traces: Traces,
    progress: Progress,
) -> None:
    """Answers the questions by each member alone and with every step, of which traces are kept."""
    questions = [question for task in tasks for question in task.questions.questions]
    for question in questions:
        if question.key not in traces.by_key:
            # Without its trace an answer is computed again.
            results.answers.pop((combined.label, *question.key), None)
    settings = [*(alone(name) for name in ensemble.names), combined]
    done = 0

    def answered(setting: Setting, count: int) -> None:
        nonlocal done
        done += count
        progress("answers", done, len(questions) * len(settings))

    def observe(setting: Setting, question: Question, output: RequestOutput) -> None:
        if setting == combined:
            traces.add({question.key: Trace.of(output)})

    run(ensemble, tasks, settings, results, answered, observe=observe)


def _members_reliability(
    ensemble: Ensemble, tasks: Sequence[Task], results: Results, found: Fit, progress: Progress
) -> tuple[dict[str, Reliability], dict[str, Reliability]]:
    """Returns the calibration of each member's own answers, without and with its temperature.

    Confidence is the probability of the answer's text, without the end of text, in both cases.
    """
    before: dict[str, list[tuple[float, bool]]] = {name: [] for name in ensemble.names}
    after: dict[str, list[tuple[float, bool]]] = {name: [] for name in ensemble.names}
    prompts = {question.key: task.prompt(question).prompt for task in tasks for question in task.questions.questions}
    for name in ensemble.names:
        answers = [each for each in results.of(name) if each.text.strip()]
        value = found.temperatures[name].value
        for start in range(0, len(answers), BATCH):
            progress(f"confidence of {name}", start, len(answers))
            own = answers[start : start + BATCH]
            texts = [(prompts[each.task, each.id], each.text) for each in own]
            for answer, measured in zip(own, ensemble.continuation_likelihoods(texts, [1.0, value]), strict=True):
                for pairs, likelihood in zip((before[name], after[name]), measured[name], strict=True):
                    pairs.append((min(1.0, math.exp(likelihood.logprob)), answer.correct))
        progress(f"confidence of {name}", len(answers), len(answers))
    return _by_member(before), _by_member(after)


def _by_member(pairs: Mapping[str, Sequence[tuple[float, bool]]]) -> dict[str, Reliability]:
    return {
        name: reliability(name, "", [each[0] for each in own], [each[1] for each in own])
        for name, own in pairs.items()
        if own
    }


def _reliability(tasks: Sequence[Task], results: Results, labels: Sequence[str]) -> list[Reliability]:
    """Returns the calibration of each setting's answers: all, then by task, then by domain."""
    domains = {question.key: question.domain for task in tasks for question in task.questions.questions}
    found = []
    for label in labels:
        answers = [each for each in results.of(label) if each.confidence is not None]
        groups: dict[str, list[Answer]] = {"": answers}
        for each in answers if len(tasks) > 1 else ():
            groups.setdefault(each.task, []).append(each)
        for each in answers:
            domain = domains.get((each.task, each.id))
            if domain:
                groups.setdefault(domain, []).append(each)
        for name, own in groups.items():
            if own and (not name or len(own) >= MIN_DOMAIN):
                confidences = [each.confidence or 0.0 for each in own]
                found.append(reliability(label, name, confidences, [each.correct for each in own]))
    return found


def _mean(answers: Sequence[Answer]) -> float:
    return sum(each.score for each in answers) / len(answers) if answers else 0.0
