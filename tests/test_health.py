"""A member that misbehaves is named, and costs only the requests that need it."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import textwrap
import threading
from contextlib import contextmanager

import pytest
import torch
from conftest import EMBEDDED, ROOT, ensemble_of, random_pair, start
from holding import soon

from gac_core import EngineClosedError, EngineStuckError, MemberError, RequestError


def swap_result(monkeypatch, member, change):
    """Changes what a member's runner returns."""
    original = member._runner.forward

    def forward(rows):
        return change(rows, original(rows))

    monkeypatch.setattr(member._runner, "forward", forward)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda logits: None, "returned a NoneType instead of logits"),
        (lambda logits: logits.tolist(), "returned a list instead of logits"),
        (lambda logits: logits[:, :-1], r"logits of shape \[1, \d+\] and dtype torch.float32; expected"),
        (lambda logits: torch.cat([logits, logits]), r"shape \[2, \d+\].*expected .* shape \[1, \d+\]"),
        (lambda logits: logits[0], r"logits of shape \[\d+\]"),
        (lambda logits: logits.long(), "dtype torch.int64"),
    ],
)
def test_wrong_logits_are_that_members_error_alone(monkeypatch, spoil, words):
    with ensemble_of([random_pair("llama"), random_pair("qwen2", seed=1)]) as both:
        good = both.generate("In which town is it", max_tokens=6).tokens
        prompt_ids = both._members[1].tokenizer.encode_prompt("Who")

        def change(rows, parts):
            return [
                spoil(part) if row.start == 0 and list(row.token_ids) == prompt_ids else part
                for row, part in zip(rows, parts, strict=True)
            ]

        swap_result(monkeypatch, both._members[1], change)
        streams = [start(both, prompt, max_tokens=6, drafts=False) for prompt in ("In which town is it", "Who")]
        with pytest.raises(MemberError, match=f"'m1' failed: .*{words}") as caught:
            list(streams[1])
        assert isinstance(caught.value.__cause__, (TypeError, ValueError))
        assert tuple(token for chunk in streams[0] for token in chunk.tokens) == good
        monkeypatch.undo()
        assert both.generate("In which town is it", max_tokens=6).tokens == good


@pytest.mark.parametrize("returned", [None, [], 3])
def test_a_runner_that_returns_no_list_of_logits_is_named(monkeypatch, returned):
    with ensemble_of([random_pair("llama")]) as one:
        swap_result(monkeypatch, one._members[0], lambda rows, parts: returned)
        with pytest.raises(MemberError, match=r"'m0' failed: (TypeError|ValueError)"):
            one.generate_batch(["Who", "In which town"], max_tokens=3)
        monkeypatch.undo()
        assert one.generate("Who", max_tokens=3).tokens


class Stuck:
    """Makes a member's forwards wait while ``hold`` is called for."""

    def __init__(self, member):
        self._forward = member._runner.forward
        self.free, self.waiting = threading.Event(), threading.Event()
        self.free.set()
        member._runner.forward = self

    def __call__(self, rows):
        if not self.free.is_set():
            self.waiting.set()
            self.free.wait()
        return self._forward(rows)

    def hold(self):
        self.waiting.clear()
        self.free.clear()


@contextmanager
def stuck_pair(**settings):
    """Two members, of which m1 is held in its forward, what lets it go on, and a stream that waits for it."""
    both = ensemble_of([random_pair("llama"), random_pair("qwen2", seed=1)], **settings)
    block = Stuck(both._members[1])
    block.hold()
    running = start(both, "In which town", max_tokens=5)
    try:
        assert block.waiting.wait(30)
        yield both, block, running
    finally:
        block.free.set()
        both.close(30)
    assert not both._session.worker._thread.is_alive()


def test_closing_does_not_wait_for_ever_and_names_the_member(caplog):
    with stuck_pair() as (both, _, running):
        waiting = start(both, "Who is", max_tokens=5)
        both.close(timeout=0.05)
        for stream in (running, waiting):
            with pytest.raises(EngineClosedError, match=r"the forward of member 'm1' has been running for \d+\.\d s"):
                list(stream)
        assert "'m1'" in caplog.text
        with pytest.raises(EngineClosedError, match="load it anew"):
            both.generate("Who", max_tokens=1)
        both.close(timeout=0)
        assert both.closed


def test_new_requests_are_refused_while_a_forward_is_stuck():
    with stuck_pair(stuck_after=0.05) as (both, block, running):
        assert soon(lambda: both._session.worker.stuck_step(both._session.client))
        with pytest.raises(EngineStuckError, match=r"member 'm1' has been running for \d+ s") as caught:
            both.generate("Who is", max_tokens=2)
        assert caught.value.member == "m1"
        assert caught.value.seconds > 0.05
        with pytest.raises(EngineStuckError, match="'m1'"):
            both.generate_batch(["Who is", "Where is"], max_tokens=2)
        with pytest.raises(EngineStuckError, match="'m1'"):
            asyncio.run(both.agenerate("Who is", max_tokens=2))
        block.free.set()
        # Once the step has returned, the engine takes requests again.
        assert list(running)[-1].output is not None
        both._session.client.stuck_after = 60.0
        assert both.generate("Who is", max_tokens=2).tokens


def test_who_waits_for_room_hears_that_the_engine_is_stuck():
    one = ensemble_of([random_pair("llama")], max_batch_size=1, max_queue=0, stuck_after=0.05)
    block = Stuck(one._members[0])
    block.hold()
    running = start(one, "In which", max_tokens=2)
    assert block.waiting.wait(30)
    with pytest.raises(EngineStuckError, match="'m0'"):
        one.generate_batch(["Who"], max_tokens=1)
    block.free.set()
    assert list(running)[-1].output is not None
    one.close()


@pytest.mark.parametrize("timeout", [-1, float("nan"), "3", True, 1e300])
def test_timeouts_are_checked(ensemble, timeout):
    with pytest.raises(RequestError, match="timeout"):
        ensemble.close(timeout)
    assert not ensemble.closed


def test_python_exits_while_the_thread_of_a_device_is_stuck():
    """Each of two devices has a thread of its own; `test_exits.py` has the case of one device."""
    code = f"""
        import threading
        import torch
        from gac_core import Ensemble
        from gac_core.engine import worker
        from gac_core.model.member import Member
        worker.EXIT_GRACE = 0.2
        create = Member.__init__
        def placed(member, name, *given):
            create(member, name, *given)
            member.device = torch.device("cpu", 0) if name == "ash" else member.device
        Member.__init__ = placed
        ensemble = Ensemble.load({EMBEDDED[:2]!r})
        assert ensemble.generate("Who", max_tokens=2).tokens
        assert len(ensemble._session.worker._engine._executor._threads) == 2
        entered = threading.Event()
        ensemble._members[0]._runner.forward = lambda rows: entered.set() or threading.Event().wait()
        threading.Thread(target=lambda: ensemble.generate("Who", max_tokens=5), daemon=True).start()
        assert entered.wait(60)
        print("left")
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=240, cwd=ROOT
    )
    assert (done.returncode, done.stdout) == (0, "left\n"), done.stderr
