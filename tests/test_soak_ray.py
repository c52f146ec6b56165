"""A few of the incidents of `soak_ray.py`: right texts or errors that name the member, and no process lost."""

from __future__ import annotations

import pytest
from soak_ray import report, soak

# `make soak` runs more of them for longer.
pytestmark = [pytest.mark.ray, pytest.mark.slow]

COUNTS = {"fail": {"killed": 2, "NaN": 1}, "drop": {"killed": 1, "hung": 1, "NaN": 1, "two at once": 1}}


@pytest.mark.parametrize("policy", ["fail", "drop"])
def test_members_that_fail_while_they_answer(policy, ray_nodes, tmp_path):
    outcomes = soak(policy, COUNTS[policy], ray_nodes.address, tmp_path / policy)
    happened = dict.fromkeys(COUNTS[policy], 0)
    for outcome in outcomes:
        happened[outcome.incident.kind] += outcome.happened
    assert happened == COUNTS[policy]
    assert not any(outcome.wrong for outcome in outcomes), report(outcomes)
