"""Answers questions with several settings of one ensemble."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from gac_core.config import EnsembleConfig
from gac_core.effective import EnsembleDefaults
from gac_core.ensemble import Ensemble
from gac_core.errors import GaCError, MemberError, RequestError, quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.prompts import Prompt
from gac_core.evaluation.questions import Question
from gac_core.evaluation.results import Answer, Results
from gac_core.evaluation.settings import Setting
from gac_core.evaluation.task import Task
from gac_core.output import MemberStats, RequestOutput
from gac_core.sampling import SamplingParams

ROUND = 32
"""Questions that all settings answer before the next ones are asked."""

Progress = Callable[[Setting, int], None]
Stage = Callable[[str, int], None]
Observer = Callable[[Setting, Question, RequestOutput], None]
"""Receives an output of a question before its answer is recorded."""


def check_configured(config: EnsembleConfig, settings: Sequence[Setting]) -> None:
    """Checks settings before models are loaded.

    Raises:
        EvaluationError: A gate or weights do not fit the ensemble.
    """
    # Sizes determine only the default gate.
    defaults = EnsembleDefaults(config, [1] * len(config.members))
    for setting in settings:
        try:
            defaults.resolve(SamplingParams(**setting.overrides()))
        except RequestError as error:
            raise _unusable(setting, error) from error


def _unusable(setting: Setting, error: RequestError) -> EvaluationError:
    return EvaluationError(f"the setting {quote(setting.label)} cannot be used: {error}")


def check_settings(ensemble: Ensemble, settings: Sequence[Setting], tasks: Sequence[Task]) -> None:
    """Checks settings before anything is computed.

    Raises:
        EvaluationError: A gate or weights do not fit the ensemble, or a member has no chat template in the chat form.
    """
    for setting in settings:
        params = SamplingParams(**setting.overrides())
        try:
            ensemble.check(params)
            missing = ensemble.without_chat_template(params)
        except RequestError as error:
            raise _unusable(setting, error) from error
        if missing and any(task.form.kind == "chat" for task in tasks):
            raise EvaluationError(
                f"member {quote(missing[0])} has no chat template, which the chat form needs; use the plain form "
                "(--form plain), or set MemberConfig.chat_template",
                member=missing[0],
            )


def run(
    ensemble: Ensemble,
    tasks: Sequence[Task],
    settings: Sequence[Setting],
    results: Results,
    progress: Progress | None = None,
    count_errors: bool = False,
    observe: Observer | None = None,
) -> None:
    """Answers the questions that the results lack.

    Rounds of 32 questions of one task: every setting answers them before the next ones are asked, so that an
    interrupted run has the same questions for all, and prompts are computed once (prefix caching). Tasks take turns.

    Args:
        ensemble: Answers all settings; their weights, gate, threshold and rule are given with each request.
        tasks: The questions.
        settings: The settings, with different labels.
        results: Receives the answers.
        progress: Called with a setting and the number of questions that it has just answered, or had answered before.
        count_errors: Whether a question that fails counts as a wrong answer. Default False: it ends the run.
        observe: Receives each output, with statistics of tokens. Default: nothing does.

    Raises:
        EvaluationError: A question could not be answered. The answers so far are in the results, and another call
            continues.
    """
    check_settings(ensemble, settings, tasks)
    for setting in settings:
        results.use(setting)
    for task, questions in rounds(tasks):
        for setting in settings:
            todo = [each for each in questions if (setting.label, *each.key) not in results.answers]
            if todo:
                answer_all(ensemble, task, setting, todo, results, count_errors, observe)
            if progress is not None:
                progress(setting, len(questions))


def rounds(tasks: Sequence[Task]) -> Iterator[tuple[Task, Sequence[Question]]]:
    """Yields the questions of each round; tasks take turns."""
    longest = max((len(task.questions.questions) for task in tasks), default=0)
    for start in range(0, longest, ROUND):
        for task in tasks:
            questions = task.questions.questions[start : start + ROUND]
            if questions:
                yield task, questions


def answer_all(
    ensemble: Ensemble,
    task: Task,
    setting: Setting,
    questions: Sequence[Question],
    results: Results,
    count_errors: bool = False,
    observe: Observer | None = None,
) -> None:
    """Answers questions as one batch and adds the answers; question by question where the batch fails."""
    try:
        results.add(_answers(ensemble, task, setting, questions, observe))
        return
    except EvaluationError:
        raise
    except GaCError as error:
        if len(questions) == 1:
            results.add([_failed(task, setting, questions[0], error, count_errors)])
            return
    failures = []
    for question in questions:
        try:
            answer_all(ensemble, task, setting, [question], results, count_errors, observe)
        except EvaluationError as error:
            failures.append(error)
            if len(failures) > 1:
                # Not only one prompt: a member that hangs would delay the error by its timeout for each question.
                break
    if failures:
        raise failures[0]


def _failed(task: Task, setting: Setting, question: Question, error: GaCError, counted: bool) -> Answer:
    """Returns the record of a question without an answer, or raises."""
    member = error.member if isinstance(error, MemberError) else None
    if not counted:
        raise EvaluationError(
            f"question {quote(question.id)} of {quote(task.name)} could not be answered with {quote(setting.label)}: "
            f"{error}. The answers so far are kept: run again with the same results file to continue, or count such "
            "questions as wrong (--count-errors)",
            member=member,
            question=question.id,
        ) from error
    scores = {metric.name: 0.0 for metric in task.metrics}
    return Answer(setting.label, task.name, question.id, "", scores, error=str(error))


def _answers(
    ensemble: Ensemble, task: Task, setting: Setting, questions: Sequence[Question], observe: Observer | None
) -> list[Answer]:
    prompts = [task.prompt(question) for question in questions]
    # Prompts of one batch share their parameters.
    groups: dict[tuple[Any, ...], list[int]] = {}
    for place, prompt in enumerate(prompts):
        groups.setdefault((prompt.stop, prompt.max_tokens), []).append(place)
    answers: dict[int, Answer] = {}
    for (stop, max_tokens), places in groups.items():
        asked = [prompts[place] for place in places]
        began = time.perf_counter()
        outputs = [
            ensemble.generate_batch(
                [prompt.prompt for prompt in asked],
                stop=stop,
                max_tokens=max_tokens,
                token_stats=True,
                seed=sample,
                **setting.overrides(),
            )
            for sample in range(setting.samples)
        ]
        seconds = (time.perf_counter() - began) / len(places)
        for place, prompt, samples in zip(places, asked, zip(*outputs, strict=True), strict=True):
            if observe is not None:
                for output in samples:
                    observe(setting, questions[place], output)
            answers[place] = _answer(task, setting, questions[place], prompt, samples, seconds)
    return [answers[place] for place in range(len(questions))]


def _answer(
    task: Task, setting: Setting, question: Question, prompt: Prompt, samples: Sequence[RequestOutput], seconds: float
) -> Answer:
    texts = [output.text + (output.stopped_by or "" if prompt.keeps_stop else "") for output in samples]
    text, share = majority([(task.metrics[0].vote(each, question), each) for each in texts])
    return Answer(
        setting=setting.label,
        task=task.name,
        id=question.id,
        text=text,
        scores=task.scores(text, question),
        steps=sum(output.stats.steps for output in samples),
        ensembled=sum(output.stats.steps_ensembled for output in samples),
        members=_work(samples),
        seconds=round(seconds, 4),
        confidence=_confidence(samples[0]) if len(samples) == 1 else share,
        finish=samples[0].finish_reason.value,
        samples=tuple(texts) if len(texts) > 1 else (),
    )


def majority(votes: Sequence[tuple[str, str]]) -> tuple[str, float]:
    """Returns the first text of the most frequent vote, and its share; of equally frequent votes the first one counts.

    Args:
        votes: Vote and text of each sample. Empty votes count where there are no others.
    """
    counts = Counter(vote for vote, _ in votes if vote) or Counter(vote for vote, _ in votes)
    winner, count = counts.most_common(1)[0]
    return next(text for vote, text in votes if vote == winner), count / len(votes)


def _work(samples: Sequence[RequestOutput]) -> Mapping[str, MemberStats]:
    """Returns each member's work, over all samples."""
    totals: dict[str, MemberStats] = {}
    for output in samples:
        for name, stats in output.stats.members.items():
            before = totals.get(name, MemberStats())
            totals[name] = MemberStats(
                before.prompt_tokens + stats.prompt_tokens,
                before.forwards + stats.forwards,
                before.tokens + stats.tokens,
                before.reused_tokens + stats.reused_tokens,
                round(before.seconds + stats.seconds, 4),
                before.images + stats.images,
            )
    return totals


def _confidence(output: RequestOutput) -> float | None:
    """Returns the product of the probabilities of the selected tokens; None without tokens."""
    if not output.token_stats:
        return None
    return math.prod(token.confidence for token in output.token_stats)
