"""Ensembles on an executor that answers with the most probable tokens, as one does whose members are elsewhere."""

from __future__ import annotations

import contextlib
import functools

import pytest
from architectures import random_model
from conftest import EMBEDDED, QUESTION, ensemble_of, tokenizer_of

from gac_core import Grammar
from gac_core.engine import frontend
from gac_core.executor import evaluator
from gac_core.executor.local import LocalExecutor
from gac_core.executor.messages import Failure

PROMPTS = [QUESTION, "The bridge stands in", "one two three one two three one two", "1874 crowns, 14:15"]
REGEX = Grammar.regex("[a-zA-Z0-9 .]{1,40}")


@contextlib.contextmanager
def compactly(k=None):
    """Ensembles that are made meanwhile run on an executor that leaves out what is not asked for."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(frontend, "LocalExecutor", functools.partial(LocalExecutor, compact=True))
        if k is not None:
            patch.setattr(evaluator, "TOP_K", k)
        yield


def executor_of(ensemble):
    """What runs an ensemble's members."""
    return ensemble._session.worker._engine._executor


def counts_of(ensemble):
    """How an ensemble's tokens were proven."""
    return ensemble._session.worker._engine._decoder._certifier.counts


def assert_same(short, full):
    """Two outputs have the same tokens, and the same numbers up to rounding in other batches."""
    assert short.tokens == full.tokens
    assert (short.finish_reason, short.text) == (full.finish_reason, full.text)
    one, other = short.stats, full.stats
    assert (one.steps, one.steps_ensembled, one.forced) == (other.steps, other.steps_ensembled, other.forced)
    assert one.confidence == pytest.approx(other.confidence, abs=1e-5)
    assert one.agreement == (None if other.agreement is None else pytest.approx(other.agreement, abs=1e-6))
    assert [entry.token for entry in short.logprobs or ()] == [entry.token for entry in full.logprobs or ()]
    for a, b in zip(short.logprobs or (), full.logprobs or (), strict=True):
        assert a.logprob == pytest.approx(b.logprob, abs=1e-4)


def random_members(**asked):
    """Three random members with different tokenizers, whose texts repeat and differ."""
    tokenizers = [tokenizer_of(folder) for folder in EMBEDDED]
    named = enumerate(zip(("llama", "gpt2", "qwen2"), tokenizers, strict=True))
    return ensemble_of([(random_model(name, each, seed), each) for seed, (name, each) in named], **asked)


def eager(ensemble):
    """Lets an ensemble draft at every chance, worth it or not."""
    for place, member in enumerate(ensemble._members):
        member.times.seconds = functools.partial(lambda seconds, tokens: seconds, 100.0 if place else 1.0)
    ensemble._session.worker._engine._decoder._lookup.lookup.ENDS = (4, 2, 1)
    return ensemble


GONE = Failure(ConnectionError("gone"), "fetching probabilities")


class Watched:
    """Counts an executor's calls, and lets fetches of one request fail."""

    def __init__(self, executor, failing=()):
        self.forwards, self.fetches, self._failing = [], [], failing
        self._forward, self._fetch = executor.forward, executor.fetch
        executor.forward, executor.fetch = self.forward, self.fetch

    def forward(self, asks, prefill_seconds=None):
        self.forwards.append(asks)
        return self._forward(asks, prefill_seconds)

    def fetch(self, wanted):
        self.fetches.append(wanted)
        return {
            key: [GONE if each.request_id in self._failing else got for each, got in zip(wanted[key], own, strict=True)]
            for key, own in self._fetch(wanted).items()
        }
