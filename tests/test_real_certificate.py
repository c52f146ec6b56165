"""Greedy tokens of real members are proven from the most probable ones, and how often that takes a fetch."""

from __future__ import annotations

import pytest
from compact import assert_same, compactly, counts_of
from test_real_laws import PROMPTS

pytestmark = pytest.mark.real

MORE = [
    "The recipe needs two eggs, a cup of flour and",
    "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(",
    "Dear Ms Weber,\n\nthank you for",
    "In 1969, the first humans",
    "<html>\n<head>\n<title>",
    "Q: What is the square root of 144?\nA:",
    "She opened the old wooden door and saw",
    "for i in range(10):\n    print(",
    "La capitale de l'Italie est",
    "The mitochondrion is",
]


@pytest.mark.parametrize(
    ("names", "threshold", "prompts"),
    [(("smollm2", "qwen"), None, PROMPTS + MORE), (("smollm2", "qwen", "gemma3"), 0.6, MORE[:6])],
)
def test_real_members_write_the_same_from_their_most_probable_tokens(real, names, threshold, prompts, capsys):
    asked = {"max_tokens": 24, "threshold": threshold, "drafts": False}
    with real.ensemble(*names) as ensemble:
        full = ensemble.generate_batch(prompts, **asked)
    with compactly(), real.ensemble(*names) as ensemble:
        short = ensemble.generate_batch(prompts, **asked)
        counts = counts_of(ensemble)
    for one, other in zip(short, full, strict=True):
        assert_same(one, other)
    steps = counts.total()
    assert steps > 10 * len(prompts)
    with capsys.disabled():
        shares = ", ".join(f"{how} {counts[how] / steps:.1%}" for how in ("at once", "values", "whole"))
        print(f"\n{' + '.join(names)}, threshold {threshold}: {steps} tokens proven {shares}")
    assert counts["whole"] < 0.1 * steps
