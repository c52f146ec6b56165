"""Compiled forwards give what eager ones give, token for token in fp32."""

from __future__ import annotations

import itertools
import logging
import random
import shutil

import pytest
import torch
from architectures import random_model
from conftest import EMBEDDED

import gac_core.model.compiled
from gac_core import ConfigError, Ensemble, EnsembleConfig, MemberConfig
from gac_core.model.compiled import CompiledRunner
from gac_core.model.member import Member
from gac_core.model.runner import Row, SlotRunner

PROMPTS = ["The bridge stands in", "one two three one two three one two", "1874 crowns, 14:15"]
compiles = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None and shutil.which("clang++") is None, reason="no C++ compiler"),
    # The compiler itself warns of what is old in it.
    pytest.mark.filterwarnings("ignore"),
]


def traffic(seed, count, slots=3):
    """Forwards of random rows: new texts, a few tokens more, cuts; not always of all slots."""
    chance = random.Random(seed)
    lengths = [0] * slots
    for slot in range(slots):
        size = chance.randint(9, 30)
        yield [Row(slot, 0, tuple(chance.randrange(500) for _ in range(size)))]
        lengths[slot] = size
    for _ in range(count):
        rows = []
        for slot in sorted(chance.sample(range(slots), chance.randint(1, slots))):
            start = max(1, lengths[slot] - chance.choice([0, 0, 0, 3]))
            size = chance.choice([1, 1, 3, 4])
            rows.append(Row(slot, start, tuple(chance.randrange(500) for _ in range(size)), chance.randint(1, size)))
            lengths[slot] = start + size
        yield rows


def assert_same(forwards, compiled, eager):
    for rows in forwards:
        for one, other in zip(compiled.forward(rows), eager.forward(rows), strict=True):
            assert one.shape == other.shape
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-3)
            assert one.argmax(-1).tolist() == other.argmax(-1).tolist()


def runners(name, tokenizer):
    return CompiledRunner(random_model(name, tokenizer)), SlotRunner(random_model(name, tokenizer))


@pytest.fixture
def uncompiled(monkeypatch):
    """The static shapes as they are, without the compiler."""
    monkeypatch.setattr(gac_core.model.compiled.torch, "compile", lambda function, **_: function)


@pytest.mark.parametrize("name", ["llama", "gpt2", "mistral with a window of 8", "gemma3 with mixed layers"])
def test_static_shapes_equal_ragged_ones(name, tokenizer, uncompiled, caplog):
    compiled, eager = runners(name, tokenizer)
    assert_same(traffic(1, 60), compiled, eager)
    assert len(compiled.shapes) >= 4
    assert not caplog.records


def test_a_growing_cache_starts_anew(tokenizer, uncompiled, caplog):
    """Every text length around a full capacity, beside a slot whose last position must stay as it is."""
    compiled, eager = runners("llama", tokenizer)
    forwards = [[Row(slot, 0, tuple(range(3, 253)))] for slot in range(2)]
    forwards += [[Row(1, 250 + i, (i + 3,))] for i in range(3)]
    forwards += [[Row(0, 250 + i, (i + 3,))] for i in range(6)] + [[Row(1, 253, (9, 8, 7, 6), 4)]]
    assert_same(forwards, compiled, eager)
    # From 256 on the last position is another one: the capacity grew.
    assert compiled._cache.shape == (2, 512)
    assert not caplog.records
    compiled.shrink(1, 10)
    assert compiled._cache.shape[0] == 1


@pytest.mark.parametrize("call", [1, 2, 3])
def test_wrong_logits_are_found_out(call, tokenizer, monkeypatch, caplog):
    """A compiled forward that computes something else, if only on replay, is not used; what is returned is right."""

    def wrong(function, **_):
        calls = itertools.count(1)
        return lambda *args: function(*args).neg() if next(calls) == call else function(*args)

    monkeypatch.setattr(gac_core.model.compiled.torch, "compile", wrong)
    compiled, eager = runners("llama", tokenizer)
    assert_same(traffic(2, 20), compiled, eager)
    assert [record.message for record in caplog.records] == [
        "a member goes on without compiled forwards: their logits differ from those of eager ones"
    ]


def test_a_compiler_that_fails_is_done_without(tokenizer, monkeypatch, caplog):
    def broken(function, **_):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(gac_core.model.compiled.torch, "compile", broken)
    compiled, eager = runners("llama", tokenizer)
    assert_same(traffic(3, 5), compiled, eager)
    assert [record.message for record in caplog.records] == [
        "a member goes on without compiled forwards: RuntimeError: no compiler here"
    ]


def test_a_compile_that_is_no_choice_is_named():
    with pytest.raises(ConfigError, match="compile of member 'ash' must be True or False, not 'yes'"):
        MemberConfig(EMBEDDED[0], compile="yes")


@pytest.mark.parametrize("real", [False, pytest.param(True, marks=compiles)])
def test_compiled_members_write_what_eager_ones_write(real, tokenizer, request, caplog):
    """One ensemble with drafts, alone and batched, that ends and starts requests."""
    if not real:
        request.getfixturevalue("uncompiled")

    def ensemble(compiled):
        members = [
            Member.from_model(random_model(name, tokenizer, seed), tokenizer, name, compile=compiled)
            for seed, name in enumerate(["llama", "gpt2"][: 1 if real else 2])
        ]
        return Ensemble(members, EnsembleConfig(tuple(MemberConfig(member.name) for member in members)))

    with ensemble(False) as eager, ensemble(True) as fast:
        for one in (eager, fast):
            one._session.worker._engine._decoder._lookup.lookup.ENDS = (4, 2, 1)
        want = [eager.generate(prompt, max_tokens=30) for prompt in PROMPTS]
        got = [fast.generate(prompt, max_tokens=30) for prompt in PROMPTS]
        together = fast.generate_batch(PROMPTS, max_tokens=30)
        assert [o.tokens for o in got] == [o.tokens for o in together] == [o.tokens for o in want]
        assert sum(output.stats.drafted for output in got) > 0
        assert fast._members[0]._runner.shapes
    assert not [record for record in caplog.records if "compiled" in record.message]


@pytest.mark.parametrize("name", [pytest.param(name, marks=compiles) for name in ("llama", "gemma3 with mixed layers")])
def test_compiled_code_equals_eager_code(name, tokenizer, caplog):
    with caplog.at_level(logging.WARNING, "gac_core"):
        compiled, eager = runners(name, tokenizer)
        assert_same(traffic(4, 20, slots=2), compiled, eager)
        assert compiled.shapes
    assert not [record for record in caplog.records if record.name.startswith("gac_core")]
