"""Ensembles are views on loaded models: they share models, KV caches and one engine, and do not affect one another."""

from __future__ import annotations

import gc
import pickle
import threading
import weakref

import pytest
from conftest import EMBEDDED, QUESTION, start
from holding import held, idle, soon

from gac_core import (
    EngineClosedError,
    EngineStuckError,
    Ensemble,
    MemberError,
    QueueFullError,
    RequestError,
    default_pool,
)
from gac_core.engine import frontend
from gac_core.engine.engines import Engines
from gac_core.model.member import Member

PROMPTS = [QUESTION, "The bridge stands in", "one two three one two three one two"]
DTYPE = "float16"
WEIGHTS = {"ash": 0.2, "birch": 2.0, "cedar": 1.0}


def loaded(*places, **settings):
    """An ensemble of some embedded members, in a dtype that no fixture uses."""
    return Ensemble.load([EMBEDDED[place] for place in places or (0, 1, 2)], dtype=DTYPE, **settings)


def models():
    return sorted(info.name for info in default_pool().models() if info.dtype == DTYPE)


@pytest.fixture
def closing():
    """Ensembles that are closed at the end of the test, after which none of their models is loaded."""
    opened = []
    yield lambda *places, **settings: opened.append(loaded(*places, **settings)) or opened[-1]
    for each in opened:
        each.close()
    assert models() == []


def test_models_are_loaded_once_for_all_ensembles(closing, monkeypatch):
    reads = []
    monkeypatch.setattr(Member, "__init__", _counted(Member.__init__, reads))
    closing()
    assert len(reads) == 3
    closing(weights=[1, 2, 3])
    closing(max_batch_size=3, combine="geometric", threshold=0.5, gate="cedar")
    closing(1)
    closing(2, 0)
    assert len(reads) == 3
    assert models() == sorted(EMBEDDED)
    closing(prefill_tokens=64)
    # Another KV cache on the same weights.
    assert len(reads) == 6
    assert models() == sorted(EMBEDDED)


def _counted(function, calls):
    def call(*given, **named):
        calls.append(given)
        return function(*given, **named)

    return call


def test_models_live_as_long_as_an_ensemble_uses_them(closing):
    whole, part = loaded(), loaded(1)
    before = part.generate("The bridge", max_tokens=8).tokens
    whole.close()
    assert models() == [EMBEDDED[1]]
    assert part.generate("The bridge", max_tokens=8).tokens == before
    part.close()
    assert models() == []
    again = closing(1)
    assert again.generate("The bridge", max_tokens=8).tokens == before


def test_a_forgotten_ensemble_gives_its_models_back(closing):
    kept = closing(0)
    forgotten = loaded(0, 1)
    assert forgotten.generate("Who", max_tokens=2).tokens
    del forgotten
    gc.collect()
    assert kept.generate("Who", max_tokens=2).tokens
    assert models() == [EMBEDDED[0]]


@pytest.mark.parametrize("engine_goes_on", [False, True])
def test_nothing_of_a_closed_ensemble_stays_in_memory(closing, monkeypatch, engine_goes_on):
    """Neither in the process's table of engines nor in an engine that goes on."""
    monkeypatch.setattr(frontend, "ENGINES", Engines())
    kept = closing(2) if engine_goes_on else None
    closed = loaded(0, 1)
    assert closed.generate("one two three four five six seven one two three four five six", max_tokens=12).tokens
    members = closed._members
    left = [weakref.ref(each) for each in (closed._union, *members, *(member.tokenizer for member in members))]
    del members
    closed.close()
    del closed
    if kept is not None:
        assert kept.generate("Who", max_tokens=2).tokens
    gc.collect()
    assert [each() for each in left if each() is not None] == []


def test_ensembles_on_the_same_devices_share_an_engine(closing, monkeypatch):
    # Engines of its own: other tests' ensembles may still use that of the process.
    monkeypatch.setattr(frontend, "ENGINES", Engines())
    one, two = closing(), closing(0)
    assert one._session.worker is two._session.worker
    one.close()
    assert not two.closed
    assert two.generate("Who", max_tokens=2).tokens
    two.close()
    assert two._session.worker.closed
    assert closing(0).generate("Who", max_tokens=2).tokens


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("threshold", [None, 0.6])
@pytest.mark.parametrize("combine", ["arithmetic", "geometric"])
def test_settings_of_a_call_equal_those_of_an_ensemble(ensemble, combine, threshold, temperature):
    """In float32: weights, gate, threshold and combination of a call give the text of an ensemble loaded with them."""
    asked = {"max_tokens": 24, "temperature": temperature, "seed": 3}
    view = {"threshold": threshold, "combine": combine, "gate_rule": "margin"}
    with Ensemble.load(EMBEDDED, dtype="float32", weights=list(WEIGHTS.values()), **view) as other:
        for prompt in PROMPTS:
            want = other.generate(prompt, **asked)
            got = ensemble.generate(prompt, weights=WEIGHTS, **view, **asked)
            assert got.tokens == want.tokens
            assert got.stats.settings == want.stats.settings
            assert got.stats.settings.gate == "birch"


def test_a_weight_of_0_leaves_a_member_out(ensemble):
    with Ensemble.load(EMBEDDED[:2], dtype="float32") as pair:
        for prompt in PROMPTS:
            got = ensemble.generate(prompt, weights={"cedar": 0}, max_tokens=24)
            assert got.tokens == pair.generate(prompt, max_tokens=24).tokens
            assert list(got.stats.members) == ["ash", "birch"]
    assert ensemble.context_for(params(weights=[1, 0, 0])) == ensemble._members[0].context


def params(**given):
    from gac_core import SamplingParams

    return SamplingParams(**given)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"weights": {"oak": 1}}, "weights names 'oak', which is not a member; members are: ash, birch, cedar"),
        ({"weights": [1, 2]}, r"weights has 2 values, \[1.0, 2.0\], but there are 3 members"),
        ({"weights": {"ash": 0, "birch": 0, "cedar": 0}}, "no member with a weight above 0"),
        ({"weights": [0, 0, 0]}, "a number above 0"),
        ({"weights": {"ash": -1}}, r"weights\['ash'\] must be at least 0"),
        ({"weights": {"ash": 0}, "gate": "ash", "threshold": 0.5}, "the gate 'ash' has the weight 0"),
        ({"combine": "loudest"}, "combine must be one of 'arithmetic', 'geometric'"),
        ({"alignment": "byte"}, "alignment must be 'token', not"),
        ({"gate_rule": "mood"}, "gate_rule must be one of 'confidence', 'margin'"),
    ],
)
def test_settings_that_cannot_be_are_refused(ensemble, given, words):
    with pytest.raises(RequestError, match=words):
        ensemble.generate("Who", max_tokens=1, **given)


def test_different_views_run_together_as_alone(ensemble):
    """Requests of several ensembles and with several settings in one engine at once, in float32."""
    views = [
        {},
        {"weights": WEIGHTS},
        {"combine": "geometric"},
        {"threshold": 0.5, "gate": "cedar"},
        {"weights": [0, 1, 0]},
    ]
    asked = {"max_tokens": 24, "temperature": 0.7, "seed": 11}
    with (
        Ensemble.load(EMBEDDED[::2], dtype="float32", max_batch_size=2) as pair,
        Ensemble.load(EMBEDDED[1:2], dtype="float32") as one,
    ):
        calls = [(ensemble, view) for view in views] + [(pair, {}), (pair, {"combine": "geometric"}), (one, {})]
        alone = [each.generate(prompt, **view, **asked).tokens for each, view in calls for prompt in PROMPTS]
        streams = [start(each, prompt, **view, **asked) for each, view in calls for prompt in PROMPTS]
        together = [list(stream)[-1].output.tokens for stream in streams]
    assert together == alone


def test_closing_one_ensemble_ends_its_requests_alone(closing):
    one, other = closing(0, 1), closing(0, 2)
    want = other.generate("The bridge", max_tokens=40).tokens
    with held(one) as waiting:
        doomed, queued = start(one, "Where is", max_tokens=200), start(one, "Who is", max_tokens=200)
        assert waiting.wait(30)
        kept = start(other, "The bridge", max_tokens=40)
        closer = threading.Thread(target=one.close)
        closer.start()
    closer.join(30)
    assert not closer.is_alive()
    for stream in (doomed, queued):
        with pytest.raises(EngineClosedError):
            list(stream)
    assert list(kept)[-1].output.tokens == want
    with pytest.raises(EngineClosedError, match="load it anew"):
        one.generate("Who", max_tokens=1)
    assert idle(other)
    assert other._members[0]._slots.num_running == 0


def test_limits_are_those_of_each_ensemble(closing):
    narrow, wide = closing(0, max_batch_size=1, max_queue=1), closing(0)
    assert narrow._members[0].member_id == wide._members[0].member_id
    with held(narrow) as waiting:
        running = start(narrow, "Who", max_tokens=2)
        assert waiting.wait(30)
        queued = start(narrow, "Where", max_tokens=2)
        with pytest.raises(QueueFullError):
            narrow.generate("When", max_tokens=2)
        others = [start(wide, "Who", max_tokens=2) for _ in range(20)]
    assert all(list(stream)[-1].output is not None for stream in (running, queued, *others))


def test_a_member_is_named_as_its_ensemble_names_it(closing, monkeypatch):
    plain, named = closing(0), Ensemble.load([{"model": EMBEDDED[0], "name": "first", "dtype": DTYPE}])
    try:
        assert named.names == ["first"]

        def forward(rows):
            raise OSError("the disk is gone")

        monkeypatch.setattr(plain._members[0]._runner, "forward", forward)
        for each, name in ((plain, "ash"), (named, "first")):
            with pytest.raises(MemberError, match=f"'{name}' failed"):
                each.generate("Who", max_tokens=2)
    finally:
        named.close()


def test_parameters_with_weights_are_values():
    one, other = params(weights={"ash": 1, "birch": 2}), params(weights={"birch": 2.0, "ash": 1.0})
    assert one == other
    assert hash(one) == hash(other)
    assert pickle.loads(pickle.dumps(one)) == one


def test_an_ensemble_that_is_opened_while_an_engine_is_stuck_gets_one_of_its_own(closing):
    stuck, beside = closing(0, stuck_after=0.05), closing(1, stuck_after=0.05)
    with held(stuck) as waiting:
        running = start(stuck, "Who", max_tokens=2)
        assert waiting.wait(30)
        assert soon(lambda: stuck._session.worker.stuck_step(stuck._session.client))
        # The name of the stuck member's own ensemble, not an id.
        with pytest.raises(EngineStuckError, match="the forward of member 'ash' has been running"):
            beside.generate("Who", max_tokens=2)
        fresh = closing(1, stuck_after=0.05)
        assert fresh.generate("Who", max_tokens=2).tokens
        assert closing(2)._session.worker is fresh._session.worker
    assert list(running)[-1].output is not None
    assert beside.generate("Who", max_tokens=2).tokens
