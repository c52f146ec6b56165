"""Whether confidence agrees with correctness: expected calibration error and the bins of reliability diagrams."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gac_core.evaluation.errors import EvaluationError

BINS = 15


@dataclass(frozen=True)
class Bin:
    """Answers of similar confidence.

    Attributes:
        low: Smallest confidence of the bin.
        high: Largest one.
        count: How many answers.
        confidence: Their mean confidence; the middle of the bin without answers.
        accuracy: Share of correct ones; 0 without answers.
    """

    low: float
    high: float
    count: int
    confidence: float
    accuracy: float


@dataclass(frozen=True)
class Reliability:
    """How well confidence agrees with correctness.

    Attributes:
        label: Whose answers: a member, or the ensemble.
        domain: Of which domain or task; empty for all.
        ece: Expected calibration error, 0 to 1: the mean over answers of the difference between the confidence and the
            share of correct answers in its bin.
        accuracy: Share of correct answers.
        confidence: Mean confidence.
        count: How many answers.
        bins: `BINS` bins of equal width.
    """

    label: str
    domain: str
    ece: float
    accuracy: float
    confidence: float
    count: int
    bins: tuple[Bin, ...]


def calibration_error(confidences: Sequence[float], correct: Sequence[bool]) -> float:
    """Returns the expected calibration error with 15 bins and the norm l1, by torchmetrics (the extra ``eval``).

    Args:
        confidences: 0 to 1, one per answer, at least one.
        correct: Whether each answer is correct.

    Raises:
        EvaluationError: torchmetrics is not installed.
    """
    import torch

    try:
        from torchmetrics.functional.classification import binary_calibration_error
    except ImportError as error:
        raise EvaluationError("calibration needs torchmetrics: pip install 'gac-ensemble[eval]'") from error
    # torchmetrics takes values as logits where one is outside 0 to 1, which rounding may cause.
    preds = torch.tensor(confidences, dtype=torch.float64).clamp(0, 1)
    # A binary problem compares confidence with the share of positive targets: correct answers.
    error_ = binary_calibration_error(preds, torch.tensor(list(correct)).long(), n_bins=BINS, norm="l1")
    return float(error_)


def reliability(label: str, domain: str, confidences: Sequence[float], correct: Sequence[bool]) -> Reliability:
    """Returns the calibration of some answers; arguments as in `calibration_error`."""
    pairs = list(zip(confidences, correct, strict=True))
    bins = []
    for index in range(BINS):
        low, high = index / BINS, (index + 1) / BINS
        own = [pair for pair in pairs if low <= pair[0] < high or (index == BINS - 1 and pair[0] >= high)]
        middle = (low + high) / 2
        bins.append(
            Bin(
                low,
                high,
                len(own),
                sum(pair[0] for pair in own) / len(own) if own else middle,
                sum(pair[1] for pair in own) / len(own) if own else 0.0,
            )
        )
    return Reliability(
        label,
        domain,
        calibration_error(confidences, correct),
        sum(correct) / len(pairs),
        sum(confidences) / len(pairs),
        len(pairs),
        tuple(bins),
    )
