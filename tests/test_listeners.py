"""Events of members and steps, and the listeners that receive them."""

from __future__ import annotations

import time

import pytest
from conftest import EMBEDDED, ensemble_of, member_ids, random_pair
from holding import held, soon

from gac_core import EngineClosedError, Ensemble, MemberError, MemberTimeoutError, RequestError
from gac_core.events import ForwardDone, MemberFailed, MemberRecovered, StepDone

LIMIT = 1.0


@pytest.fixture
def pair():
    """Two members on one device."""
    with ensemble_of([random_pair("llama"), random_pair("qwen2", seed=1)]) as loaded:
        loaded.generate("Who", max_tokens=4)
        yield loaded


def test_listeners_of_an_ensemble(pair, monkeypatch, caplog):
    events, others = [], []

    def broken(event):
        raise ValueError("a broken listener")

    remove, remove_broken = pair.add_listener(events.append), pair.add_listener(broken)
    with ensemble_of([random_pair("llama")]) as other:
        other.add_listener(others.append)
        output = pair.generate("Who", max_tokens=4, drafts=False)
    assert others == []
    assert "a listener raised" in caplog.text
    remove_broken()
    forwards = [event for event in events if isinstance(event, ForwardDone)]
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [event.member for event in forwards] == ["m0", "m1"] * 4
    assert sum(event.tokens for event in forwards if event.member == "m1") == output.stats.members["m1"].tokens
    assert [(event.requests, event.tokens, event.waiting) for event in steps] == [(1, 1, 0)] * 4
    assert all(event.seconds > 0 for event in (*forwards, *steps))
    events.clear()
    monkeypatch.setattr(pair._members[1]._runner, "forward", lambda rows: [1 / 0 for _ in rows])
    with pytest.raises(MemberError):
        pair.generate("Who", max_tokens=2, request_id="mine")
    (failed,) = [event for event in events if isinstance(event, MemberFailed)]
    assert (failed.member, failed.request_id, failed.error) == ("m1", "mine", "MemberError")
    assert "ZeroDivisionError" in failed.reason
    assert pair.health().members[1].failures == 1
    assert pair.health().healthy
    (record,) = [record for record in caplog.records if getattr(record, "event", None) == "request_failed"]
    assert (record.member, record.request_id) == ("m1", "mine")
    assert record.seconds > 0
    monkeypatch.undo()
    remove()
    remove()
    events.clear()
    assert pair.generate("Who", max_tokens=2).tokens
    assert events == []


@pytest.mark.parametrize("kind", [ForwardDone, StepDone])
def test_a_listener_cannot_ask_what_waits_for_it(pair, kind):
    errors = []

    def ask(event):
        if isinstance(event, kind) and not errors:
            try:
                pair.generate("Who", max_tokens=1, timeout=1)
            except RequestError as error:
                errors.append(str(error))

    pair.add_listener(ask)
    assert len(pair.generate("Where", max_tokens=3).tokens) == 3
    assert "pass the event on to another thread" in errors[0]


@pytest.mark.parametrize("kind", [ForwardDone, StepDone])
def test_a_listener_may_look_and_close(pair, kind):
    seen = []

    def close(event):
        if isinstance(event, kind) and not seen:
            seen.append(pair.health().healthy)
            began = time.monotonic()
            pair.close()
            seen.append(time.monotonic() - began)

    pair.add_listener(close)
    with pytest.raises(EngineClosedError):
        pair.generate("Where", max_tokens=3, timeout=10)
    assert seen[0]
    assert seen[1] < 0.5


def test_events_have_the_names_of_the_listeners_ensemble():
    config = {"dtype": "float32", "forward_timeout": LIMIT}
    renamed = [{"model": EMBEDDED[0], "name": "mine"}]
    with Ensemble.load(EMBEDDED[:1], **config) as one, Ensemble.load(renamed, **config) as other:
        assert member_ids(one) == member_ids(other)
        heard: list[tuple[str, object]] = []
        one.add_listener(lambda event: heard.append(("one", event)))
        other.add_listener(lambda event: heard.append(("other", event)))
        with held(one, 0), pytest.raises(MemberTimeoutError, match="'mine'"):
            other.generate("Who", max_tokens=2)
        assert soon(lambda: other.health().healthy)
        assert soon(lambda: sum(isinstance(event, MemberRecovered) for _, event in heard) == 2)
        named = {(who, event.member) for who, event in heard if not isinstance(event, StepDone)}
        assert named == {("one", "ash"), ("other", "mine")}
        failed = [event for _, event in heard if isinstance(event, MemberFailed)]
        assert all(event.reason.startswith("its forward has been running") for event in failed)
        assert other.health().members[0].name == "mine"
