"""Where a request fails with a member: the policy ``"fail"``, too few members left, a gate that must live."""

from __future__ import annotations

import pytest
from conftest import LONG_PROMPT
from faulty import FAULTS, fail_at, faulty_ensemble, healed
from holding import idle, soon

from gac_core import MemberError

PROMPT = LONG_PROMPT
PROMPTS = [PROMPT, "Where is bridge 1", "Who", "1874 crowns, 14:15"]
GREEDY = {"max_tokens": 24}


def failing(one, executor, prompt=PROMPT, **asked):
    with pytest.raises(MemberError) as caught:
        one.generate(prompt, **{**GREEDY, **asked})
    healed(executor)
    assert idle(one)
    return caught.value


def test_all_members_fail():
    with faulty_ensemble(on_member_failure="drop") as (one, executor):
        executor.script = lambda name, request_id: "raise"
        executor.absent = lambda name: True
        error = failing(one, executor, drafts=False)
        assert error.member == "m2"
        assert "a kernel failed" in str(error)


@pytest.mark.parametrize("fault", [fault for fault in FAULTS if fault != "restart"])
def test_without_the_policy_the_request_fails_and_nothing_else(fault):
    with faulty_ensemble(forward_timeout=2.0) as (one, executor):
        want = [output.tokens for output in one.generate_batch(PROMPTS, **GREEDY)]
        fail_at(one, executor, "m1", 2, fault)
        error = failing(one, executor)
        assert error.member == "m1"
        assert error.request_id
        assert soon(lambda: executor.refresh() or one.health().healthy)
        assert [output.tokens for output in one.generate_batch(PROMPTS, **GREEDY)] == want


def test_too_few_members_are_left():
    with faulty_ensemble(on_member_failure="drop", min_members=2) as (one, executor):
        executor.script = lambda name, request_id: "raise" if name == "m2" else None
        executor.absent = lambda name: True
        assert [each.member for each in one.generate(PROMPT, **GREEDY).stats.dropped] == ["m2"]
        executor.script = lambda name, request_id: "raise" if name != "m1" else None
        assert failing(one, executor, drafts=False).member == "m2"


def test_a_gate_that_must_live():
    with faulty_ensemble(on_member_failure="drop", gate_must_live=True, gate="m1") as (one, executor):
        executor.script = lambda name, request_id: "raise" if name == "m1" else None
        assert one.generate(PROMPT, max_tokens=4).stats.dropped[0].member == "m1"
        executor.script = lambda name, request_id: "raise" if name == "m1" else None
        assert failing(one, executor, threshold=0.5).member == "m1"
        executor.script = lambda name, request_id: "raise" if name == "m2" else None
        assert one.generate(PROMPT, max_tokens=4, threshold=1.0).stats.dropped[0].member == "m2"
        healed(executor)
