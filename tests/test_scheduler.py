"""`Scheduler`: which requests run together."""

from __future__ import annotations

from gac_core import DocumentPrompt
from gac_core.engine.scheduler import Scheduler


def requests(ensemble, *widths):
    """Requests in which a member reads so many prompts, without a prior."""
    prompts = [
        DocumentPrompt("{document}?", [f"Text {number}" for number in range(width)], prior=False) for width in widths
    ]
    return [ensemble._input_processor.request(prompt, None, {"max_tokens": 1})[0] for prompt in prompts]


def scheduled(scheduler):
    return [request.width for request in scheduler.schedule()]


def test_each_prompt_that_a_member_reads_counts(ensemble):
    asked = requests(ensemble, 2, 1, 1, 5)
    scheduler = Scheduler()
    scheduler.set_limit(asked[0].ensemble_id, 3)
    for request in asked:
        scheduler.add(request)
    assert scheduled(scheduler) == [2, 1]
    scheduler.remove(asked[0].request_id)
    assert scheduled(scheduler) == [1, 1]
    for request in asked[1:3]:
        scheduler.remove(request.request_id)
    assert scheduled(scheduler) == [5], "what is wider than the limit runs alone"


def test_later_requests_do_not_pass_a_wide_one(ensemble):
    first, wide, late = requests(ensemble, 1, 3, 1)
    scheduler = Scheduler()
    scheduler.set_limit(first.ensemble_id, 3)
    for request in (first, wide, late):
        scheduler.add(request)
    assert scheduled(scheduler) == [1]
    assert scheduler.waiting() == [wide, late]
    scheduler.remove(first.request_id)
    assert scheduled(scheduler) == [3]


def test_a_request_that_waits_holds_up_no_other_ensemble(ensemble):
    first, wide, other = requests(ensemble, 1, 3, 1)
    other.ensemble_id = "other"
    scheduler = Scheduler()
    scheduler.set_limit(first.ensemble_id, 2)
    scheduler.set_limit("other", 1)
    for request in (first, wide, other):
        scheduler.add(request)
    assert scheduler.schedule() == [first, other]
