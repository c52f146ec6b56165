"""Weights as shares of one."""

from __future__ import annotations

from collections.abc import Sequence


def normalise(weights: Sequence[float]) -> list[float]:
    """Returns the weights divided by their sum."""
    # Divided by the largest first: the sum of very large weights is infinite.
    largest = max(weights)
    parts = [weight / largest for weight in weights]
    total = sum(parts)
    return [part / total for part in parts]
