"""What crosses between this process and an actor arrives as it was sent; Ray itself is not used."""

from __future__ import annotations

import sys
from dataclasses import replace

import pytest
import torch
from conftest import EMBEDDED, shared_ensemble

from gac_core import ConfigError, Ensemble, EnsembleConfig, MemberError
from gac_core.combination import margin
from gac_core.errors import InvalidLogitsError, PromptTooLongError
from gac_core.executor.messages import Answer, Ask, Failure, Fetch, LogitOffsets, TopDistributions
from gac_core.executor.ray import tokens, wire
from gac_core.executor.ray.remote_errors import PortableError
from gac_core.executor.ray.wire import AnswerMessage, AskMessage, FetchMessage, FetchReply
from gac_core.model.chunk import Chunk


def crossed(message):
    """A message as it arrives, in parts."""
    return wire.decode(wire.split(wire.encode(message)))


@pytest.fixture(scope="module")
def alignment():
    with shared_ensemble(EMBEDDED[:2]) as ensemble:
        yield ensemble._input_processor._members[0].alignment


def test_an_ask_arrives_as_it_was_sent(alignment, monkeypatch):
    monkeypatch.setattr(wire, "PART_BYTES", 100)
    mask = torch.rand(2, alignment.table.size) < 0.1
    chunk = Chunk("request", 3, (5, 7, 6), 2)
    offsets = (
        LogitOffsets(torch.tensor([7, 2]), torch.tensor([0.1, -100.0], dtype=torch.float64)),
        LogitOffsets(torch.tensor([], dtype=torch.long), torch.tensor([], dtype=torch.float64)),
    )
    asked = {"mask": lambda: mask, "offsets": offsets, "gate_rule": margin, "share": 0.25, "fetch_from": 4}
    ask = Ask(chunk, (5, 6), alignment, "top", 1.5, (1, 2, 3), **asked)
    found = crossed(AskMessage.of(ask, mask)).ask(alignment)
    assert (found.chunk, found.ends, found.form, found.fetch_from) == (chunk, (5, 6), "top", 4)
    assert (found.repetition_penalty, found.text_before) == (1.5, (1, 2, 3))
    probs = torch.rand(2, 9).softmax(-1)
    assert torch.equal(found.gate_rule(probs, found.share), margin(probs, 0.25))
    assert found.share == 0.25
    assert torch.equal(found.mask(), mask)
    for one, other in zip(found.offsets, offsets, strict=True):
        assert torch.equal(one.ids, other.ids)
        assert torch.equal(one.values, other.values)


@pytest.mark.parametrize("masked", [False, True])
def test_distributions_arrive_as_they_were_sent(masked):
    probs = torch.rand(3, 1001).softmax(-1)
    mask = torch.rand(3, 1001) < 0.1 if masked else None
    if mask is not None:
        probs = probs * mask
    message = AnswerMessage.of(Answer(probs, 0.5, 4, 3, probs.amax(-1)), mask, "here")
    found = crossed(message).answer(mask)
    assert torch.equal(found.result, probs)
    assert torch.equal(found.certainty, probs.amax(-1))
    assert (found.seconds, found.read, found.computed) == (0.5, 4, 3)
    assert len(wire.encode(message)) < (5000 if masked else 13000)


def test_the_most_probable_tokens_arrive_as_they_were_sent():
    top = TopDistributions(torch.randint(9, (2, 20)), torch.rand(2, 20), torch.rand(2), torch.rand(2))
    found = crossed(AnswerMessage.of(Answer(top), None, "here")).answer(None).result
    for name in ("ids", "probs", "totals", "rest"):
        assert torch.equal(getattr(found, name), getattr(top, name))
        assert getattr(found, name).dtype == getattr(top, name).dtype


def test_fetched_rows_arrive_as_they_were_sent():
    fetch = crossed(FetchMessage.of(Fetch("request", 7, torch.tensor([3, 1])))).fetch()
    assert (fetch.request_id, fetch.end, fetch.ids.tolist()) == ("request", 7, [3, 1])
    row = torch.rand(5)
    rows = crossed(FetchReply.of([row, Failure(KeyError("gone"), "fetching", of_member=False)], "here")).tensors()
    assert torch.equal(rows[0], row)
    assert (rows[1].stage, rows[1].of_member, str(rows[1].error)) == ("fetching", False, "'gone'")


class Stubborn(Exception):
    def __init__(self, one, other):
        super().__init__(f"{one} and {other}")
        self.lambda_ = lambda: one
        self.one = one

    def __reduce__(self):
        raise TypeError("cannot be pickled")


@pytest.mark.parametrize(
    "error",
    [
        ValueError("a", "b"),
        KeyError("a"),
        OSError(2, "no such file", "x"),
        UnicodeDecodeError("utf-8", b"a", 0, 1, "bad"),
        MemberError("ash", "broken"),
        InvalidLogitsError("ash"),
        PromptTooLongError("ash", 5, 3),
        torch.OutOfMemoryError("CUDA out of memory"),
        SystemExit(3),
        Stubborn("this", "that"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_keep_class_and_text(error):
    found = crossed(PortableError.of(error, "process 7 on node x")).rebuild()
    assert (type(found).__name__, str(found)) == (type(error).__name__, str(error))
    assert found.__notes__ == ["raised by process 7 on node x"]
    for name in ("member", "prompt_tokens", "one"):
        assert getattr(found, name, None) == getattr(error, name, None)


def test_an_error_of_a_class_that_is_not_here_keeps_its_name():
    sent = PortableError.of(Stubborn("this", "that"), "there")
    elsewhere = replace(sent, module="a_module_elsewhere")
    found = elsewhere.rebuild()
    assert (type(found).__name__, str(found)) == ("Stubborn", "this and that")
    assert isinstance(found, Exception)


def test_ray_that_is_not_installed_is_named(monkeypatch):
    for name in list(sys.modules):
        if name == "ray" or name.startswith(("ray.", "gac_core.executor.ray.")):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"executor='ray' needs Ray; install it with: pip install 'gac-ensemble\[ray"):
        Ensemble.from_config(EnsembleConfig((EMBEDDED[0],), executor="ray"))


def test_members_of_this_process_do_not_run_on_ray(monkeypatch):
    with (
        shared_ensemble(EMBEDDED[:1]) as ensemble,
        pytest.raises(ConfigError, match="executor='ray' loads the members"),
    ):
        Ensemble(ensemble._members, replace(ensemble.config, executor="ray"))


@pytest.mark.parametrize(
    ("address", "variables", "required"),
    [
        (None, {}, True),
        ("local", {}, True),
        ("10.0.0.1:6379", {}, False),
        (None, {"RAY_ADDRESS": "10.0.0.1:6379"}, False),
        (None, {"RAY_AUTH_MODE": "disabled"}, False),
    ],
)
def test_a_ray_that_is_started_here_requires_a_token(monkeypatch, address, variables, required):
    monkeypatch.delitem(sys.modules, "ray", raising=False)
    for name in ("RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    environment: dict[str, str] = dict(variables)
    monkeypatch.setattr(tokens.os, "environ", environment)
    tokens.require_token(address)
    assert (len(environment.get("RAY_AUTH_TOKEN", "")) == 64) == required
    assert (environment.get("RAY_AUTH_MODE") == "token") == required
