"""Members that fail while requests run: with ``"fail"`` their error, with ``"drop"`` the text of the others."""

from __future__ import annotations

import pytest
import reference
from conftest import LONG_PROMPT
from faulty import faulty_ensemble

from gac_core.decoding import absence

PROMPT = LONG_PROMPT
PROMPTS = [PROMPT, "Where is bridge 1", "Who", "1874 crowns, 14:15"]
GREEDY = {"max_tokens": 24}
SAMPLED = {"max_tokens": 24, "temperature": 0.7, "seed": 5}


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch):
    """Members return as soon as they work."""
    monkeypatch.setattr(absence, "REJOIN_PAUSE", 0.0)


@pytest.fixture(scope="module")
def dropping():
    with faulty_ensemble(on_member_failure="drop", forward_timeout=0.5) as (one, executor):
        one.generate(PROMPT, max_tokens=4)
        yield one, executor


def requests_of(one):
    """The requests that run, by id."""
    return one._session.worker._engine._scheduler._running


def fail_at(one, executor, name, count, fault="raise", until=None):
    """Lets a member fail at its first forward once so many tokens are written, and work again from ``until`` on."""
    done = []

    def written(request_id=None):
        running = requests_of(one)
        own = [running[request_id]] if request_id in running else list(running.values())
        return max([request.num_committed for request in own], default=0)

    def script(asked, request_id):
        if asked == name and not done and written(request_id) >= count:
            done.append(asked)
            return fault
        return None

    executor.given.clear()
    executor.script = script
    executor.absent = lambda asked: asked == name and bool(done) and (until is None or written() < until)


def absent_by(output):
    """What a reference needs to know: by the number of tokens written, the members without a vote."""

    def absent(count):
        return {
            int(each.member[1:])
            for each in output.stats.dropped
            if each.at_token <= count and (each.rejoined_at is None or count < each.rejoined_at)
        }

    return absent


def twin(one, executor, prompt, output, **asked):
    """The tokens of a run alone and without drafts in which the same members fail at the same tokens."""
    absent = absent_by(output)

    def count():
        return next(iter(requests_of(one).values())).num_committed

    executor.script = lambda name, request_id: "raise" if int(name[1:]) in absent(count()) else None
    executor.absent = lambda name: int(name[1:]) in absent(count())
    tokens = one.generate(prompt, drafts=False, **asked).tokens
    healed(executor)
    return tokens


def healed(executor):
    executor.script = lambda name, request_id: None
    executor.absent = lambda name: False
    executor.restore()


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
    assert output.tokens == twin(one, executor, PROMPT, output, **asked)
    if "temperature" not in asked:
        gate = int(asked.get("gate", one.gate)[1:])
        tokens, _ = reference.generate(
            plain_members, PROMPT, 24, threshold=asked.get("threshold"), gate=gate, absent=absent_by(output)
        )
        assert list(output.tokens) == tokens
