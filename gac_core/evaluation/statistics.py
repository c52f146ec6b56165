"""Paired bootstrap intervals of means and of their differences."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 10_000
_CHUNK = 500
Values = NDArray[np.float64]


@dataclass(frozen=True)
class Interval:
    """An estimate with a 95% percentile bootstrap interval.

    Attributes:
        value: The estimate.
        low: 2.5% quantile over the resamples.
        high: 97.5% quantile.
    """

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Comparison:
    """Two settings on the same questions.

    Attributes:
        difference: Mean of the first minus mean of the second.
        relative: That difference divided by the mean of the second; None where this mean is 0.
    """

    difference: Interval
    relative: Interval | None


def resampled_means(scores: Sequence[Sequence[float]], groups: Sequence[str] | None = None) -> Values:
    """Returns the means of each setting over resampled questions; all settings share the resamples (paired).

    Args:
        scores: Per setting, its score for each question; all settings in the same order of questions.
        groups: The task of each question; each task is resampled by itself. Default: all of one task.

    Returns:
        Float64, shape ``[10,000, settings]``. Seeded: equal arguments give equal values.
    """
    table = np.asarray(scores, dtype=np.float64).T
    if table.ndim != 2 or not table.size:
        raise ValueError("scores must have at least one setting and one question")
    names = np.asarray(groups if groups is not None else [""] * len(table))
    rng = np.random.default_rng(0)
    sums = np.zeros((RESAMPLES, table.shape[1]))
    for name in sorted(set(names.tolist())):
        rows = table[names == name]
        share = np.full(len(rows), 1 / len(rows))
        for start in range(0, RESAMPLES, _CHUNK):
            counts = rng.multinomial(len(rows), share, size=_CHUNK)
            sums[start : start + _CHUNK] += counts @ rows
    means: Values = sums / len(table)
    return means


def mean_interval(scores: Sequence[float], groups: Sequence[str] | None = None) -> Interval:
    """Returns the mean of scores with its interval; arguments as in `resampled_means`."""
    return interval_of(float(np.mean(scores)), resampled_means([scores], groups)[:, 0])


def compare(ours: Sequence[float], theirs: Sequence[float], groups: Sequence[str] | None = None) -> Comparison:
    """Returns the paired differences of two settings on the same questions.

    Args:
        ours: Scores of one setting.
        theirs: Scores of the other, in the same order of questions.
        groups: As in `resampled_means`.
    """
    means = resampled_means([ours, theirs], groups)
    return comparison_of(float(np.mean(ours)), float(np.mean(theirs)), means[:, 0], means[:, 1])


def comparison_of(first: float, second: float, first_means: Values, second_means: Values) -> Comparison:
    """Returns the differences of two means, from the means over the same resamples.

    Args:
        first: Mean of one setting.
        second: Mean of the other.
        first_means: Float64, shape ``[resamples]``: the first mean over each resample.
        second_means: Likewise the second mean.
    """
    difference = interval_of(first - second, first_means - second_means)
    usable = second_means > 0
    if second == 0 or not usable.any():
        return Comparison(difference, None)
    return Comparison(difference, interval_of(first / second - 1, first_means[usable] / second_means[usable] - 1))


def questions_needed(ours: Sequence[float], theirs: Sequence[float]) -> int | None:
    """Returns how many questions would show the observed difference, with 80% power at the 5% level.

    ``((1.96 + 0.84) * s / d) ** 2`` for paired differences of mean ``d`` and standard deviation ``s``. None where the
    observed difference is 0.
    """
    differences = np.asarray(ours, dtype=np.float64) - np.asarray(theirs, dtype=np.float64)
    mean = float(differences.mean())
    if len(differences) < 2 or mean == 0:
        return None
    return math.ceil(((1.96 + 0.84) * float(differences.std(ddof=1)) / mean) ** 2)


def interval_of(value: float, means: Values) -> Interval:
    """Returns an estimate with the 2.5% and 97.5% quantiles over resamples, float64 of shape ``[resamples]``."""
    low, high = np.quantile(means, (0.025, 0.975))
    return Interval(value, float(low), float(high))
