"""Levels of a probability or share, for colours: 0 is the surest."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Level:
    """A range of values that share a colour.

    Attributes:
        number: 0 for the surest.
        low: The smallest value in it, 0 to 1.
        label: The range, for legends.
        colour: Background on a light page, with black text; empty: none.
    """

    number: int
    low: float
    label: str
    colour: str


# One hue of falling lightness, so that the order is visible without colour vision and in greyscale.
LEVELS = (
    Level(0, 0.9, "90% or more", ""),
    Level(1, 0.7, "70 to 90%", "#fff0cf"),
    Level(2, 0.5, "50 to 70%", "#fedd9a"),
    Level(3, 0.3, "30 to 50%", "#fdb557"),
    Level(4, 0.0, "below 30%", "#e8731a"),
)


def level_of(value: float) -> Level:
    """Returns the level of a value from 0 to 1."""
    return next((level for level in LEVELS if value >= level.low), LEVELS[-1])
