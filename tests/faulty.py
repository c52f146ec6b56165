"""Real members whose forwards fail where a test wants it."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import replace

import torch
from conftest import EMBEDDED, pair

from gac_core import Ensemble, EnsembleConfig, MemberConfig, MemberLostError
from gac_core.engine.engines import Place
from gac_core.engine.frontend import connect
from gac_core.executor.local import LocalExecutor
from gac_core.executor.local_member import MemberCall
from gac_core.executor.messages import Answer, Failure, TopDistributions
from gac_core.model.member import Member

FAULTS = ("raise", "memory", "nan", "lost", "hang", "restart")
"""``"raise"``, ``"memory"`` and ``"nan"`` concern one request; ``"lost"`` and ``"hang"`` the member, until `restore`;
after ``"lost"``, and between the next two steps with ``"restart"``, its KV cache is lost."""


class FaultyExecutor(LocalExecutor):
    """A `LocalExecutor` some of whose forwards fail.

    Attributes:
        script: Given a member's name and a request's id, returns which fault its next forward or fetch has; None: none.
        absent: Given a member's name, whether it counts as not alive although it could compute.
        given: The faults so far.
        restore_after: Steps after which `restore` is called, again and again; None: never.
    """

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.script: Callable[[str, str], str | None] = lambda name, request_id: None
        self.absent: Callable[[str], bool] = lambda name: False
        self.given: list[str] = []
        self.restore_after: int | None = None
        self._steps = 0
        self._lost: set[str] = set()
        self._restored: set[str] = set()
        self._restarted: set[str] = set()
        self._generations: dict[str, int] = {}
        self._free = threading.Event()

    def restore(self) -> None:
        """Lets hung forwards return, and lost members come back with the next step."""
        self._restored |= self._lost
        free, self._free = self._free, threading.Event()
        free.set()

    def refresh(self) -> None:
        self._steps += 1
        if self.restore_after is not None and self._steps % self.restore_after == 0:
            self.restore()
        for member_id in self._restored & self._lost:
            self._lost.discard(member_id)
            self._forget_cache(member_id)
        self._restored.clear()
        for member_id in self._restarted:
            self._forget_cache(member_id)
        self._restarted.clear()
        super().refresh()

    def generation(self, member_id: str) -> int:
        return self._generations.get(member_id, 0)

    def alive(self, member_id: str) -> bool:
        name = self._members[member_id].member.name
        return member_id not in self._lost and not self.absent(name) and super().alive(member_id)

    def _forget_cache(self, member_id: str) -> None:
        self._generations[member_id] = self.generation(member_id) + 1
        member = self._members[member_id].member
        for slot in list(member._slots._slots):
            if slot.request_id is not None:
                member.release(slot.request_id, clear=True)

    def _forward(self, member, asks, prefill_seconds):
        thread, call = super()._forward(member, asks, prefill_seconds)
        faults = [self.script(member.member.name, ask.chunk.request_id) for ask in asks]
        self.given += [fault for fault in faults if fault is not None]
        free = self._free

        def run():
            answers = member.forward(asks, prefill_seconds)
            spoil_kept(member, asks, faults)
            return [spoiled(answer, fault) for answer, fault in zip(answers, faults, strict=True)]

        def work():
            if member.member.member_id in self._lost or "lost" in faults:
                self._lost.add(member.member.member_id)
                return [Answer(Failure(MemberLostError(member.member.name, "its process is gone"))) for _ in asks]
            if "hang" in faults:
                free.wait()
            if "restart" in faults:
                self._restarted.add(member.member.member_id)
            return run()

        return thread, MemberCall(member, work, call._failed)

    def _fetch(self, member, wanted):
        thread, call = super()._fetch(member, wanted)
        faults = [self.script(member.member.name, each.request_id) for each in wanted]
        self.given += [fault for fault in faults if fault is not None]

        def work():
            if member.member.member_id in self._lost or "lost" in faults:
                self._lost.add(member.member.member_id)
                return [Failure(MemberLostError(member.member.name, "its process is gone")) for _ in wanted]
            fetched = member.evaluator.fetch(wanted)
            return [
                result if fault is None else Failure(RuntimeError("a fetch failed"), "fetching probabilities")
                for result, fault in zip(fetched, faults, strict=True)
            ]

        return thread, MemberCall(member, work, call._failed)


@torch.inference_mode()
def spoil_kept(member, asks, faults) -> None:
    """Makes the distributions NaN that a compact evaluator keeps to be fetched."""
    for ask, fault in zip(asks, faults, strict=True):
        if fault == "nan":
            for row in member.evaluator._kept.get(ask.chunk.request_id, {}).values():
                row.mul_(float("nan"))


def spoiled(answer: Answer, fault: str | None) -> Answer:
    """An answer as a fault leaves it."""
    if fault == "raise":
        return replace(answer, result=Failure(RuntimeError("a kernel failed")))
    if fault == "memory":
        return replace(answer, result=Failure(RuntimeError("CUDA out of memory")))
    if fault == "nan" and answer.result is not None and not isinstance(answer.result, Failure):
        nan, result = float("nan"), answer.result
        certainty = None if answer.certainty is None else answer.certainty * nan
        if isinstance(result, TopDistributions):
            spoilt = {name: getattr(result, name) * nan for name in ("probs", "totals", "rest")}
            return replace(answer, result=replace(result, **spoilt), certainty=certainty)
        return replace(answer, result=result * nan, certainty=certainty)
    return answer


@contextmanager
def faulty_ensemble(compact=False, members=None, **settings):
    """An ensemble of some members, or of the embedded ones in fp32, and its `FaultyExecutor`."""
    executors: list[FaultyExecutor] = []

    def new_executor(listener):
        executors.append(FaultyExecutor(compact=compact, listener=listener))
        return executors[-1]

    if members is None:
        members = [Member.from_model(*pair(folder), f"m{index}") for index, folder in enumerate(EMBEDDED)]
    config = EnsembleConfig(tuple(MemberConfig(member.name) for member in members), **settings)
    ensemble = Ensemble.__new__(Ensemble)
    ensemble._attach(connect(members, config, place=Place("faulty", new_executor)))
    try:
        yield ensemble, executors[0]
    finally:
        executors[0].restore()
        ensemble.close()


# ---- scripts


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


def healed(executor: FaultyExecutor) -> None:
    """Ends a script."""
    executor.script = lambda name, request_id: None
    executor.absent = lambda name: False
    executor.restore_after = None
    executor.restore()


def absent_by(output):
    """What `reference.generate` needs to know: by the number of tokens written, the members without a vote."""

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

    healed(executor)
    executor.script = lambda name, request_id: "raise" if int(name[1:]) in absent(count()) else None
    executor.absent = lambda name: int(name[1:]) in absent(count())
    tokens = one.generate(prompt, **{**asked, "drafts": False}).tokens
    healed(executor)
    return tokens
