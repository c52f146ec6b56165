"""Fits the probability that documents do not contain an answer: a logistic regression on what doubt measures."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from gac_core.calibration.document_questions import DocumentQuestion
from gac_core.calibration.reliability import calibration_error
from gac_core.doubt import FEATURES, AbsenceCalibration, Doubt, FeatureScale
from gac_core.ensemble import Ensemble
from gac_core.errors import quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.output import RequestOutput
from gac_core.sampling import SamplingParams

if TYPE_CHECKING:
    from torch import Tensor

FOLDS = 5
PENALTY = 1.0
"""Weight of half the sum of the squared coefficients of standardised features, against the sum of the log losses."""

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Sample:
    """One answer whose documents are known to contain the answer or not.

    Attributes:
        question: Number of its question, the same for equal ones; all answers to it are in the same fold.
        doubt: Its doubt.
        absent: Whether its documents lack the answer.
        cited_right: Whether the document with the largest share over the answer is the one that contains it; None where
            none does.
    """

    question: int
    doubt: Doubt
    absent: bool
    cited_right: bool | None = None


@dataclass(frozen=True)
class AbsenceReport:
    """How well absence is predicted for questions that were not fitted on.

    Attributes:
        auroc: Area under the ROC curve, 0 to 1: how often an answer whose documents lack it gets a larger probability
            than one whose documents contain it. 0.5 is chance.
        brier: Mean squared error of the probability, 0 to 1.
        ece: Expected calibration error, 0 to 1.
        base_rate: Share of answers whose documents lack it; always predicting it has the Brier score
            ``base_rate * (1 - base_rate)``.
        answers: How many answers.
        citation_accuracy: Share of answers, of those whose documents contain them, that cite the right one.
    """

    auroc: float
    brier: float
    ece: float
    base_rate: float
    answers: int
    citation_accuracy: float | None


def measure(
    ensemble: Ensemble,
    questions: Sequence[DocumentQuestion],
    form: str,
    chat: bool,
    params: SamplingParams,
    progress: Progress,
) -> list[Sample]:
    """Answers each question with the document that contains the answer, and again without it.

    Args:
        ensemble: The ensemble.
        questions: The questions.
        form: As in `DocumentQuestion.prompt`.
        chat: As there.
        params: Parameters of the answers.
        progress: Receives how many answers there are.
    """
    # A question may be given several times, with and without the document.
    numbers = {text: number for number, text in enumerate(dict.fromkeys(each.question for each in questions))}
    asked = [(numbers[question.question], each) for question in questions for each in question.variants()]
    samples: list[Sample] = []
    size = ensemble.config.max_batch_size
    for start in range(0, len(asked), size):
        part = asked[start : start + size]
        outputs = ensemble.generate_batch([each.prompt(form, chat) for _, each in part], params)
        samples += [_sample(number, each, output) for (number, each), output in zip(part, outputs, strict=True)]
        progress("answers", len(samples), len(asked))
    return samples


def _sample(number: int, question: DocumentQuestion, output: RequestOutput) -> Sample:
    if output.doubt is None or not output.document_shares:
        raise EvaluationError(f"the answer to {quote(question.question)} has no token that documents voted for")
    right = None
    if question.answer_in is not None:
        # Documents without an id have their numbers as ids.
        cited = int(max(output.document_shares.items(), key=lambda pair: pair[1])[0]) - 1
        right = question.documents[cited].text == question.documents[question.answer_in].text
    return Sample(number, output.doubt, question.answer_in is None, right)


def fit_absence(samples: Sequence[Sample]) -> AbsenceCalibration:
    """Returns the logistic regression of absence, on the features that every sample has and that vary.

    Features are standardised, and large coefficients are penalised (`PENALTY`).

    Args:
        samples: The answers, some of which are absent from their documents and some are not.

    Raises:
        EvaluationError: All are absent or none is, or no feature can be used.
    """
    import torch

    _check_both(samples)
    columns = {name: [getattr(sample.doubt, name) for sample in samples] for name in FEATURES}
    scales: dict[str, tuple[float, float]] = {}
    for name, values in columns.items():
        if all(value is not None for value in values):
            mean = math.fsum(values) / len(values)
            deviation = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / len(values))
            if deviation > 1e-9:
                scales[name] = mean, deviation
    if not scales:
        raise EvaluationError("the answers' doubt is the same for all questions, so that nothing follows from it")
    standard = [[(value - mean) / deviation for value in columns[name]] for name, (mean, deviation) in scales.items()]
    features = torch.tensor(standard, dtype=torch.float64).T
    absent = torch.tensor([sample.absent for sample in samples], dtype=torch.float64)
    *coefficients, intercept = _regression(features, absent).tolist()
    pairs = zip(scales.items(), coefficients, strict=True)
    return AbsenceCalibration(
        features={name: FeatureScale(*scale, coefficient) for (name, scale), coefficient in pairs},
        intercept=intercept,
        questions=len({sample.question for sample in samples}),
    )


def _regression(features: Tensor, absent: Tensor) -> Tensor:
    """Returns the coefficients of a penalised logistic regression, and its intercept, shape ``[features + 1]``."""
    import torch

    coefficients = torch.zeros(features.shape[1] + 1, dtype=torch.float64, requires_grad=True)
    optimiser = torch.optim.LBFGS(
        [coefficients], max_iter=500, tolerance_grad=1e-9, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimiser.zero_grad()
        odds = features @ coefficients[:-1] + coefficients[-1]
        fit = torch.nn.functional.binary_cross_entropy_with_logits(odds, absent, reduction="sum")
        total: Tensor = fit + PENALTY / 2 * coefficients[:-1].square().sum()
        total.backward()  # type: ignore[no-untyped-call]
        return total

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return coefficients.detach()


def cross_validate(samples: Sequence[Sample], folds: int = FOLDS) -> AbsenceReport:
    """Returns how well absence is predicted by regressions that were fitted on the other questions.

    Questions are in folds by their numbers, so that both answers to a question are in one.

    Args:
        samples: The answers.
        folds: How many folds, 2 or more.

    Raises:
        EvaluationError: As in `fit_absence`, for one of the folds; torchmetrics is not installed.
    """
    found: list[tuple[Sample, float]] = []
    for fold in range(folds):
        held = [sample for sample in samples if sample.question % folds == fold]
        if held:
            fitted = fit_absence([sample for sample in samples if sample.question % folds != fold])
            values = [fitted.probability(sample.doubt) for sample in held]
            if None in values:
                raise EvaluationError("some answers lack a value that the others have; use the same settings for all")
            found += [(sample, value) for sample, value in zip(held, values, strict=True) if value is not None]
    return _report([sample for sample, _ in found], [value for _, value in found])


def _report(samples: Sequence[Sample], predicted: Sequence[float]) -> AbsenceReport:
    import torch

    try:
        from torchmetrics.functional.classification import binary_auroc
    except ImportError as error:
        raise EvaluationError("calibration needs torchmetrics: pip install 'gac-ensemble[eval]'") from error
    absent = [sample.absent for sample in samples]
    chances = torch.tensor(predicted, dtype=torch.float64)
    target = torch.tensor(absent).long()
    cited = [sample.cited_right for sample in samples if sample.cited_right is not None]
    return AbsenceReport(
        auroc=float(binary_auroc(chances, target)),
        brier=float(torch.nn.functional.mse_loss(chances, target.double())),
        ece=calibration_error(predicted, absent),
        base_rate=sum(absent) / len(absent),
        answers=len(samples),
        citation_accuracy=sum(cited) / len(cited) if cited else None,
    )


def _check_both(samples: Sequence[Sample]) -> None:
    absent = sum(sample.absent for sample in samples)
    if absent in (0, len(samples)):
        raise EvaluationError(
            f"the documents of {absent} of {len(samples)} answers lack the answer; both kinds are needed: give more "
            "questions, some with answer_in and two documents or more"
        )
