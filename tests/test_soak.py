"""A few of the random inputs of `soak.py`: a right answer or a `GaCError`, and no process lost."""

from __future__ import annotations

import pytest
from soak import report, run

LIMIT = 20.0


@pytest.mark.slow
def test_random_inputs_are_answered_or_refused():
    outcomes = run(range(300), LIMIT)
    assert {outcome.kind for outcome in outcomes.values()} == {"answered", "refused"}, report(outcomes)
