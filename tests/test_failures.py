"""Members that fail while requests run: with ``"fail"`` their error, with ``"drop"`` the text of the others."""

from __future__ import annotations

import logging
import time

import pytest
import reference
from conftest import LONG_PROMPT
from faulty import FAULTS, absent_by, fail_at, faulty_ensemble, healed, requests_of, twin
from holding import idle, soon
from random_faults import random_faults

from gac_core import Grammar, as_metadata
from gac_core.decoding import absence
from gac_core.decoding.request import Absence
from gac_core.events import MemberFailed
from gac_langchain import ChatGaC
from gac_llamaindex import GaCLLM as IndexLLM

PROMPT = LONG_PROMPT
PROMPTS = [PROMPT, "Where is bridge 1", "Who", "1874 crowns, 14:15"]
GREEDY = {"max_tokens": 24}
SAMPLED = {"max_tokens": 24, "temperature": 0.7, "seed": 5}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Members return as soon as they work."""
    monkeypatch.setattr(absence, "REJOIN_PAUSE", 0.0)


def check_text(one, executor, plain_members, output, asked):
    """A text is that of the members that took part at each token: by a run without drafts, and by the reference."""
    assert output.tokens == twin(one, executor, PROMPT, output, **asked)
    if "temperature" not in asked:
        tokens, _ = reference.generate(
            plain_members,
            PROMPT,
            24,
            threshold=asked.get("threshold"),
            gate=gate_of(one, asked),
            absent=absent_by(output),
        )
        assert list(output.tokens) == tokens


@pytest.fixture(scope="module")
def dropping():
    with faulty_ensemble(on_member_failure="drop", forward_timeout=2.0) as (one, executor):
        one.generate(PROMPT, max_tokens=4)
        yield one, executor
        assert idle(one)
        assert [member._slots.num_running for member in one._members] == [0, 0, 0]


def gate_of(one, asked):
    return int(asked.get("gate", one.gate)[1:])


@pytest.mark.parametrize(
    "asked", [GREEDY, SAMPLED, {**GREEDY, "threshold": 0.5}, {**GREEDY, "threshold": 0.5, "gate": "m1"}]
)
@pytest.mark.parametrize("name", ["m0", "m1", "m2"])
@pytest.mark.parametrize("count", [0, 1, 3])
def test_the_text_goes_on_as_that_of_the_others(dropping, plain_members, name, count, asked):
    one, executor = dropping
    fail_at(one, executor, name, count)
    output = one.generate(PROMPT, **asked)
    healed(executor)
    for dropped in output.stats.dropped:
        assert dropped.member == name
        assert dropped.at_token >= count
        assert "a kernel failed" in dropped.reason
        assert dropped.rejoined_at is None
    assert len(output.stats.dropped) == len(executor.given)
    assert executor.given or asked is not GREEDY
    check_text(one, executor, plain_members, output, asked)


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("count", [0, 2])
def test_every_fault_is_survived(dropping, plain_members, fault, count):
    one, executor = dropping
    plain = one.generate(PROMPT, **GREEDY)
    fail_at(one, executor, "m1", count, fault)
    output = one.generate(PROMPT, **GREEDY)
    healed(executor)
    assert executor.given == [fault]
    if fault == "restart":
        assert output.tokens == plain.tokens
        assert output.stats.dropped == []
    else:
        tokens, _ = reference.generate(plain_members, PROMPT, 24, absent=absent_by(output))
        assert list(output.tokens) == tokens
        (dropped,) = output.stats.dropped
        words = {"raise": "kernel", "memory": "smaller max_batch_size", "nan": "not finite"}
        words |= {"lost": "process is gone", "hang": "has been running for"}
        assert words[fault] in dropped.reason
    assert soon(lambda: one.health().healthy or not one.generate("Who", max_tokens=1).stats.steps)
    assert one.generate(PROMPT, **GREEDY).tokens == plain.tokens


@pytest.mark.parametrize("asked", [GREEDY, SAMPLED, {**GREEDY, "threshold": 0.6}])
@pytest.mark.parametrize(("name", "count", "until"), [("m0", 0, 2), ("m1", 1, 3), ("m2", 2, 4), ("m0", 2, 3)])
def test_a_member_that_works_again_takes_part_again(dropping, plain_members, name, count, until, asked):
    one, executor = dropping
    fail_at(one, executor, name, count, until=until)
    output = one.generate(PROMPT, **asked)
    healed(executor)
    for dropped in output.stats.dropped:
        assert dropped.rejoined_at is None or dropped.rejoined_at >= until
    if asked is GREEDY:
        assert output.stats.dropped[0].rejoined_at is not None
        assert output.stats.members[name].forwards > 1
    check_text(one, executor, plain_members, output, asked)


@pytest.mark.parametrize("grammar", [Grammar.regex("[a-z ]{40}"), Grammar.choices(["one two three", "one two four"])])
def test_a_grammar_holds_without_a_member(dropping, plain_members, grammar):
    one, executor = dropping
    fail_at(one, executor, "m1", 2)
    output = one.generate("Who", max_tokens=24, grammar=grammar)
    healed(executor)
    oracle = reference.Oracle(grammar)
    tokens, _ = reference.generate(plain_members, "Who", 24, grammar=oracle, absent=absent_by(output))
    assert list(output.tokens) == tokens


@pytest.mark.parametrize("until", [None, 5])
def test_penalties_count_what_is_written_without_a_member(dropping, plain_members, until):
    one, executor = dropping
    penalties = {"presence_penalty": 1.5, "frequency_penalty": 0.5}
    fail_at(one, executor, "m1", 2, until=until)
    output = one.generate(PROMPT, **GREEDY, **penalties)
    healed(executor)
    (dropped,) = output.stats.dropped
    assert (dropped.rejoined_at is None) == (until is None)
    tokens, _ = reference.generate(plain_members, PROMPT, 24, absent=absent_by(output), **penalties)
    assert list(output.tokens) == tokens
    assert output.tokens != one.generate(PROMPT, **GREEDY).tokens


def test_only_requests_that_a_fault_concerns_go_on_without_the_member(dropping):
    one, executor = dropping
    want = one.generate_batch(PROMPTS, **GREEDY)
    bad = []

    def script(name, request_id):
        request = requests_of(one).get(request_id)
        if name == "m2" and not bad and request is not None and request.label == "bad" and request.num_committed:
            bad.append(request_id)
            return "nan"
        return None

    executor.script, executor.absent = script, lambda name: True
    outputs = one.generate_batch(PROMPTS, request_ids=["a", "bad", "c", "d"], **GREEDY)
    healed(executor)
    for output, plain in zip(outputs, want, strict=True):
        if output.request_id == "bad":
            assert [each.member for each in output.stats.dropped] == ["m2"]
            assert output.tokens == twin(one, executor, PROMPTS[1], output, **GREEDY)
        else:
            assert output.tokens == plain.tokens
            assert output.stats.dropped == []


def test_a_lost_member_leaves_all_requests_of_a_batch(dropping):
    one, executor = dropping
    fail_at(one, executor, "m1", 1, "lost")
    outputs = one.generate_batch(PROMPTS, **GREEDY)
    healed(executor)
    for prompt, output in zip(PROMPTS, outputs, strict=True):
        assert [each.member for each in output.stats.dropped] in (["m1"], [])
        assert output.tokens == twin(one, executor, prompt, output, **GREEDY)


def test_two_members_fail_at_once(dropping, plain_members):
    one, executor = dropping
    executor.script = lambda name, request_id: "raise" if name != "m1" else None
    executor.absent = lambda name: name != "m1"
    output = one.generate(PROMPT, **GREEDY)
    healed(executor)
    assert sorted(each.member for each in output.stats.dropped) == ["m0", "m2"]
    tokens, _ = reference.generate(plain_members, PROMPT, 24, absent=absent_by(output))
    assert list(output.tokens) == tokens


def test_a_request_starts_without_a_member_that_is_down_and_says_so(dropping, caplog):
    one, executor = dropping
    caplog.set_level(logging.INFO, logger="gac_core")
    fail_at(one, executor, "m1", 0, "lost")
    one.generate("Who", max_tokens=1)
    caplog.clear()
    output = one.generate("Who", max_tokens=3, request_id="mine")
    assert [(each.member, each.at_token, each.rejoined_at) for each in output.stats.dropped] == [("m1", 0, None)]
    assert as_metadata(output)["gac"]["dropped"] == [
        {"member": "m1", "reason": output.stats.dropped[0].reason, "at_token": 0, "rejoined_at": None}
    ]
    (record,) = [record for record in caplog.records if getattr(record, "event", None) == "member_dropped"]
    assert (record.levelno, record.member, record.request_id) == (logging.WARNING, "m1", "mine")
    assert "Who" not in record.getMessage()
    caplog.clear()
    fail_at(one, executor, "m1", 0, until=1)
    executor.restore()
    one.generate("Who", max_tokens=6, request_id="mine", drafts=False)
    healed(executor)
    (record,) = [record for record in caplog.records if getattr(record, "event", None) == "member_rejoined"]
    assert (record.levelno, record.member, record.request_id) == (logging.INFO, "m1", "mine")


def test_a_member_returns_three_times_at_most(dropping):
    one, executor = dropping
    executor.script = lambda name, request_id: "raise" if name == "m1" else None
    output = one.generate(PROMPT, **GREEDY)
    healed(executor)
    dropped = output.stats.dropped
    assert len(dropped) == absence.MAX_REJOINS + 1
    assert [each.rejoined_at is None for each in dropped] == [False] * absence.MAX_REJOINS + [True]


def test_pauses_before_a_return_double(dropping, monkeypatch):
    one, executor = dropping
    monkeypatch.setattr(absence, "REJOIN_PAUSE", 100.0)
    until = []
    monkeypatch.setattr(absence, "Absence", lambda voice, at: until.append(at - time.monotonic()) or Absence(voice, 0))
    executor.script = lambda name, request_id: "raise" if name == "m1" else None
    one.generate(PROMPT, **GREEDY)
    healed(executor)
    assert [round(each / 100) for each in until] == [1, 2, 4]


FORCED = Grammar.regex("one two three four five (six|seven)")


@pytest.mark.parametrize("grammar", [None, FORCED], ids=["selected", "forced"])
def test_a_member_that_cannot_write_a_token_is_dropped_for_good(dropping, plain_members, monkeypatch, grammar):
    one, executor = dropping
    events = []
    remove = one.add_listener(events.append)
    member = one._input_processor._members[1]
    commit, left = member.commit, [3]

    def failing_commit(text, data, own):
        left[0] -= 1
        if not left[0]:
            raise RuntimeError("a tokenizer failed")
        commit(text, data, own=own)

    monkeypatch.setitem(vars(member), "commit", failing_commit)
    slots = []
    monkeypatch.setattr(executor, "refresh", lambda: slots.append(one._members[1]._slots.num_running))
    output = one.generate(PROMPT, drafts=False, grammar=grammar, **GREEDY)
    remove()
    ((name, at_token, rejoined_at),) = [(each.member, each.at_token, each.rejoined_at) for each in output.stats.dropped]
    assert (name, rejoined_at) == ("m1", None)
    assert at_token >= 3
    assert grammar is not None or at_token == 3
    oracle = None if grammar is None else reference.Oracle(grammar)
    tokens, _ = reference.generate(plain_members, PROMPT, 24, grammar=oracle, absent=absent_by(output))
    assert list(output.tokens) == tokens
    (failed,) = [event for event in events if isinstance(event, MemberFailed)]
    assert (failed.member, failed.error, failed.request_id) == ("m1", "MemberError", output.request_id)
    # Its KV cache of the request is freed at once.
    assert slots[-1] == 0


def test_a_fetch_that_fails_is_its_members_failure(plain_members):
    with faulty_ensemble(compact=True, on_member_failure="drop") as (one, executor):
        fetched = []
        fetch = executor._fetch

        def counted(member, wanted):
            fetched.append(member.member.name)
            executor.script = lambda name, request_id: "raise" if name == fetched[0] and len(fetched) == 1 else None
            return fetch(member, wanted)

        executor._fetch = counted
        executor.absent = lambda name: bool(fetched) and name == fetched[0]
        output = one.generate("Who", **GREEDY)
        healed(executor)
        (dropped,) = output.stats.dropped
        assert dropped.member == fetched[0]
        assert "a fetch failed" in dropped.reason
        tokens, _ = reference.generate(plain_members, "Who", 24, absent=absent_by(output))
        assert list(output.tokens) == tokens


def test_answers_of_both_wrappers_say_which_members_failed(dropping):
    one, executor = dropping
    for ask in (
        lambda: ChatGaC(ensemble=one, max_tokens=4).invoke("Who").response_metadata,
        lambda: IndexLLM(ensemble=one, max_tokens=4).complete("Who").raw,
    ):
        fail_at(one, executor, "m1", 0)
        (dropped,) = ask()["gac"]["dropped"]
        healed(executor)
        assert (dropped["member"], dropped["at_token"], dropped["rejoined_at"]) == ("m1", 0, None)
        assert "a kernel failed" in dropped["reason"]


@pytest.mark.parametrize("compact", [False, True])
def test_random_faults(compact):
    report = random_faults(seed=1, least=100, compact=compact)
    assert report.faults >= 100
    assert report.wrong == []
    assert report.hung == []
    assert report.kinds == set(FAULTS)
    # Whether tokens are drafted depends on measured times.
    # Whether the last ones return in time depends on the machine.
    assert report.dropped >= report.rejoined > 0
