"""Random values of every kind, good and bad, for arguments and settings."""

from __future__ import annotations

import random

LEAVES = [
    *(None, True, False, 0, 1, -1, 3, 16, 10**6000, -(10**400), 2**64, 0.0, 0.5, 1.5, -0.1, 1e308),
    *(float("nan"), float("inf"), "", "a", "default", "auto", "user", "ash", "x" * 100_000, "\ud800", "\x00", "0.5"),
    *(b"", b"\xff", object(), int, len, 3j, range(3), frozenset({1}), bytearray(b"a")),
]


DEEP_LIST: list = []
for _ in range(100_000):
    DEEP_LIST = [DEEP_LIST]
DEEP: object = {}
for _ in range(50_000):
    DEEP = {"a": [DEEP]}


class Unprintable:
    """Its repr raises."""

    def __repr__(self):
        raise ValueError("no repr")


def value(rng: random.Random, depth: int = 0):
    """A random value, nested up to three levels, or a hundred thousand levels now and then."""
    kind = rng.random()
    if kind < 0.02:
        return Unprintable()
    if kind < 0.03:
        return DEEP
    if kind < 0.65 or depth == 3:
        return rng.choice(LEAVES)
    parts = [value(rng, depth + 1) for _ in range(rng.randrange(4))]
    if kind < 0.8:
        return parts if rng.random() < 0.7 else tuple(parts)
    keys = ["type", "properties", "$defs", "required", "items", "enum", "role", "content", "a", "minimum", "format", 3]
    return {rng.choice(keys): part for part in parts}


HUGE = 10**6000
LONG = "x" * 20_000_000
