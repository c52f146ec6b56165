"""A member whose forward hangs: its requests fail in time, everything else goes on, and it works again afterwards."""

from __future__ import annotations

import os
import threading
import time

import pytest
from chunks import ask_of
from conftest import EMBEDDED, ensemble_of, random_pair, start
from holding import held, idle, soon

from gac_core import EngineClosedError, Ensemble, MemberTimeoutError
from gac_core.events import ForwardDone, MemberRecovered
from gac_core.executor.local import LocalExecutor
from gac_core.executor.messages import Failure
from gac_core.model.member import Member

TIMEOUT = LIMIT = 1.0
WITHOUT = {"m1": 0.0}


@pytest.fixture
def pair():
    """Two members on one device, whose forwards are given up soon."""
    with ensemble_of([random_pair("llama"), random_pair("qwen2", seed=1)], forward_timeout=TIMEOUT) as loaded:
        loaded.generate("Who", max_tokens=4)
        yield loaded


def alive(one, index=1):
    return one._session.worker._engine._executor.alive(one._members[index].member_id)


def test_requests_of_a_hung_member_fail_in_time_and_others_go_on(pair):
    want = pair.generate("Where is it", max_tokens=8)
    alone = pair.generate("Where is it", max_tokens=8, weights=WITHOUT)
    with held(pair, 1) as entered:
        streams = [start(pair, prompt, max_tokens=8) for prompt in ("Where is it", "Who")]
        beside = start(pair, "Where is it", max_tokens=8, weights=WITHOUT)
        for stream in streams:
            with pytest.raises(MemberTimeoutError, match=r"'m1' failed: .* for [\d.]+ s.*forward_timeout") as caught:
                list(stream)
            assert caught.value.member == "m1"
            assert TIMEOUT <= caught.value.seconds < 5
        assert list(beside)[-1].output.stats.steps == alone.stats.steps
        assert not alive(pair)
        assert pair.generate("Where is it", max_tokens=8, weights=WITHOUT).tokens == alone.tokens
        entered.clear()
        with pytest.raises(MemberTimeoutError):
            pair.generate("Where is it", max_tokens=8)
        assert not entered.is_set()
        assert idle(pair)
    assert soon(lambda: alive(pair))
    assert pair.generate("Where is it", max_tokens=8).tokens == want.tokens
    assert [member._slots.num_running for member in pair._members] == [0, 0]


def test_a_hang_in_the_middle_of_an_answer(pair):
    want = pair.generate("Where is it", max_tokens=8, drafts=False).tokens
    with held(pair, 1, after=4):
        stream, tokens = start(pair, "Where is it", max_tokens=8, drafts=False), []
        with pytest.raises(MemberTimeoutError):
            tokens.extend(token for chunk in stream for token in chunk.tokens)
    assert soon(lambda: alive(pair))
    assert pair.generate("Where is it", max_tokens=8).tokens == want


def test_members_behind_a_hung_one_on_the_same_device_go_on(pair):
    with held(pair, 0):
        with pytest.raises(MemberTimeoutError, match="'m0'"):
            pair.generate("Who", max_tokens=2)
        assert [alive(pair, index) for index in range(2)] == [False, True]
        assert pair.generate("Who", max_tokens=2, weights={"m0": 0.0}).tokens


def test_members_that_share_a_model_wait_for_it():
    shared = random_pair("llama")
    with ensemble_of([shared, shared], forward_timeout=TIMEOUT) as twins:
        twins.generate("Who", max_tokens=2)
        with held(twins, 0):
            with pytest.raises(MemberTimeoutError):
                # With drafts, the one that drafts may be asked alone.
                twins.generate("Who", max_tokens=2, drafts=False)
            assert soon(lambda: not any(alive(twins, index) for index in range(2)))
            with pytest.raises(MemberTimeoutError):
                twins.generate("Who", max_tokens=2)
        assert soon(lambda: all(alive(twins, index) for index in range(2)))
        assert twins.generate("Who", max_tokens=2).tokens


def test_an_ensemble_that_is_closed_while_a_member_hangs_names_it_and_harms_no_other(caplog):
    config = {"dtype": "float32", "forward_timeout": TIMEOUT}
    with Ensemble.load(EMBEDDED[2:], **config) as other:
        closing = Ensemble.load(EMBEDDED[:2], **config)
        assert closing._session.worker is other._session.worker
        name = closing.names[1]
        with held(closing, 1):
            with pytest.raises(MemberTimeoutError):
                closing.generate("Who", max_tokens=2)
            began = time.monotonic()
            closing.close(timeout=0.05)
            assert f"the forward of member '{name}' has been running for" in caplog.text
            assert other.generate("Who", max_tokens=2).tokens
            assert time.monotonic() - began < 5
            with pytest.raises(EngineClosedError):
                closing.generate("Who", max_tokens=2)
        assert closing._session.client.released.wait(10)
    again = Ensemble.load(EMBEDDED[:2], **config)
    assert again.generate("Who", max_tokens=2).tokens
    again.close()


def test_an_ensemble_is_closed_without_waiting_for_the_forward_of_another_engine():
    config = {"dtype": "float32"}
    with Ensemble.load(EMBEDDED[2:], **config) as other:
        closing = Ensemble.load(EMBEDDED[:1], cache_gib=0.5, **config)
        assert closing._session.worker is other._session.worker
        # As during a forward of another member with the same weights.
        with closing._members[0]._lock:
            closing.close(timeout=0.05)
            assert other.generate("Who", max_tokens=2, timeout=10).tokens
        assert closing._session.client.released.wait(10)


# ---- health of an ensemble


def test_health_of_an_ensemble_that_was_just_loaded():
    with Ensemble.load(EMBEDDED[:1]) as one:
        (member,) = one.health().members
        assert (member.where, member.weight_bytes > 10**6, member.alive) == ("cpu", True, True)


def test_health_of_an_ensemble(pair):
    health = pair.health()
    assert (health.healthy, health.reason, health.requests, health.queue) == (True, None, 0, 0)
    assert [(member.name, member.state, member.where) for member in health.members] == [
        ("m0", "ready", "cpu"),
        ("m1", "ready", "cpu"),
    ]
    for member in health.members:
        assert member.alive
        assert member.since_forward >= 0
        assert member.forward_seconds > 0
        assert member.running_seconds is None
        assert member.weight_bytes > 0
        assert member.cache_bytes > 0
        assert (member.failures, member.restarts) == (0, 0)


def test_health_while_a_forward_runs_hangs_and_has_returned():
    with ensemble_of(
        [random_pair("llama"), random_pair("qwen2", seed=1)], forward_timeout=3.0, stuck_after=0.1, max_batch_size=1
    ) as one:
        assert one.health().healthy
        with held(one, 1) as waiting:
            stream = start(one, "Who", max_tokens=2)
            assert waiting.wait(10)
            waits = start(one, "Where", max_tokens=2)
            assert soon(lambda: one.health().members[1].running_seconds > 0.2)
            health = one.health()
            assert not health.healthy
            assert "'m1' has been running" in health.reason
            assert (health.requests, health.queue) == (1, 1)
            assert [(member.requests, member.queue, member.state) for member in health.members] == [
                (1, 1, "ready"),
                (1, 1, "running"),
            ]
            assert health.step_seconds > 0.2
            for each in (stream, waits):
                with pytest.raises(MemberTimeoutError):
                    list(each)
            assert idle(one)
            health = one.health()
            assert (health.healthy, health.step_seconds, health.members[1].alive) == (False, None, False)
            assert health.reason.startswith("member 'm1' is hung: its forward has been running")
            assert health.members[1].failures == 1
            assert health.members[0].alive
        assert soon(lambda: one.health().healthy)
    health = one.health()
    assert (health.healthy, health.reason) == (False, "the ensemble is closed")
    assert [member.state for member in health.members] == ["closed", "closed"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_health_after_a_fork(pair):
    read, write = os.pipe()
    child = os.fork()
    if not child:
        health = pair.health()
        try:
            pair.add_listener(print)
        except EngineClosedError:
            os.write(write, f"{health.healthy} {health.reason} {health.members[0].state}".encode())
        os._exit(0)
    os.close(write)
    os.waitpid(child, 0)
    with os.fdopen(read) as file:
        assert file.read() == "False the ensemble was loaded before this process was forked closed"
    assert pair.health().healthy


# ---- the executor alone


def member_of(seed: int) -> Member:
    return Member.from_model(*random_pair("llama", seed), f"m{seed}")


def test_events_and_states_of_a_hung_member():
    one, other = member_of(0), member_of(1)
    events: list[object] = []
    executor = LocalExecutor([one, other], listener=events.append)
    free, entered = threading.Event(), threading.Event()
    forward = one._runner.forward
    asks = {member.member_id: [ask_of(member, timeout=LIMIT)] for member in (one, other)}
    executor.forward(asks)
    assert [type(event) for event in events] == [ForwardDone, ForwardDone]
    assert [(event.member, event.requests, event.tokens) for event in events] == [("m0", 1, 24), ("m1", 1, 24)]
    assert executor.health(one.member_id).state == "ready"
    assert executor.health(one.member_id).cache_bytes > 0
    assert executor.health(one.member_id).weight_bytes > 4 * one.size
    executor.release("r")
    events.clear()
    one._runner.forward = lambda rows: entered.set() or (free.wait() and forward(rows))
    answers = executor.forward(asks)
    assert isinstance(answers[one.member_id][0].result, Failure)
    assert not isinstance(answers[other.member_id][0].result, Failure)
    (failed, done) = events
    assert (failed.member, failed.error, failed.request_id) == ("m0", "MemberTimeoutError", None)
    assert failed.seconds >= LIMIT
    assert (type(done), done.member) == (ForwardDone, "m1")
    health = executor.health(one.member_id)
    assert (health.state, health.alive, health.reason) == ("hung", False, failed.reason)
    assert health.running_seconds >= LIMIT
    assert executor.running() == []
    # Its slot is freed only when the forward has returned.
    executor.release("r", clear=True)
    executor.refresh()
    assert (one._slots.num_running, other._slots.num_running) == (1, 0)
    free.set()
    assert soon(lambda: executor.alive(one.member_id))
    assert one._slots.num_running == 0
    assert soon(lambda: isinstance(events[-1], MemberRecovered))
    assert (events[-1].member, events[-1].restarted) == ("m0", False)
    assert not isinstance(executor.forward(asks)[one.member_id][0].result, Failure)
    executor.close()


def test_a_release_does_not_wait_for_another_engine_and_comes_before_the_next_forward():
    member = member_of(0)
    executor = LocalExecutor([member])
    ask = {member.member_id: [ask_of(member)]}
    executor.forward(ask)
    entered, free = threading.Event(), threading.Event()

    def other_engine():
        with member._lock:
            entered.set()
            free.wait()

    thread = threading.Thread(target=other_engine)
    thread.start()
    assert entered.wait(10)
    executor.release("r", clear=True)
    assert member._slots.num_running == 1
    free.set()
    thread.join()
    cleared = []
    clear = member._runner.clear
    member._runner.clear = lambda slot: cleared.append(slot) or clear(slot)
    assert executor.forward(ask)[member.member_id][0].computed == 24
    assert cleared == [0]
    executor.refresh()
    assert member._slots.num_running == 1
    executor.close()
