"""A temperature for each member by the likelihood of reference answers (Guo et al. 2017, section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

GRID = tuple(float(round(value, 4)) for value in np.geomspace(0.25, 4.0, 33))
"""Temperatures at which the likelihood is measured; 1 is among them."""


@dataclass(frozen=True)
class Temperature:
    """A member's temperature.

    Attributes:
        value: The temperature.
        before: Mean negative log-likelihood of the reference answers of the other half, in nats per token, at the
            temperature 1.
        after: The same at ``value``.
        tokens: How many tokens were measured on the other half.
    """

    value: float
    before: float
    after: float
    tokens: int


def best_temperature(nll: Sequence[float], grid: Sequence[float] = GRID) -> float:
    """Returns the temperature with the smallest negative log-likelihood, between the temperatures of a grid too.

    The negative log-likelihood has one minimum, since it is convex in the inverse temperature. Near it, a parabola in
    the logarithm of the temperature through the best point of the grid and its neighbours has its minimum there.

    Args:
        nll: At each temperature of the grid.
        grid: Temperatures, ascending.

    Returns:
        With three decimals; an end of the grid where the minimum is there.
    """
    place = int(np.argmin(nll))
    if not 0 < place < len(grid) - 1:
        return round(grid[place], 3)
    x = np.log(np.asarray(grid[place - 1 : place + 2]))
    a, b, _ = np.polyfit(x, np.asarray(nll[place - 1 : place + 2]), 2)
    return round(float(np.exp(-b / (2 * a))) if a > 0 else grid[place], 3)
