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
from gac_core.executor.messages import Answer, Failure
from gac_core.model.member import Member

FAULTS = ("raise", "memory", "nan", "lost", "hang", "restart")
"""``"raise"``, ``"memory"`` and ``"nan"`` concern one request; ``"lost"`` and ``"hang"`` the member, until `restore`;
after ``"lost"`` and ``"restart"`` its KV cache is gone."""


class FaultyExecutor(LocalExecutor):
    """A `LocalExecutor` some of whose forwards fail.

    Attributes:
        script: Given a member's name and a request's id, returns which fault its next forward has; None: none.
        absent: Given a member's name, whether it counts as not alive although it could compute.
    """

    def __init__(self, **options) -> None:
        super().__init__(**options)
        self.script: Callable[[str, str], str | None] = lambda name, request_id: None
        self.absent: Callable[[str], bool] = lambda name: False
        self.given: list[str] = []
        self._lost: set[str] = set()
        self._restored: set[str] = set()
        self._generations: dict[str, int] = {}
        self._free = threading.Event()

    def restore(self) -> None:
        """Lets hung forwards return, and lost members come back with the next step."""
        self._restored |= self._lost
        free, self._free = self._free, threading.Event()
        free.set()

    def refresh(self) -> None:
        for member_id in self._restored & self._lost:
            self._lost.discard(member_id)
            self._forget_cache(member_id)
        self._restored.clear()
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
            return [
                spoiled(answer, fault)
                for answer, fault in zip(member.forward(asks, prefill_seconds), faults, strict=True)
            ]

        def work():
            if member.member.member_id in self._lost or "lost" in faults:
                self._lost.add(member.member.member_id)
                return [Answer(Failure(MemberLostError(member.member.name, "its process is gone"))) for _ in asks]
            if "hang" in faults:
                assert free.wait(60)
            return run()

        return thread, MemberCall(member, work, call._failed)


def spoiled(answer: Answer, fault: str | None) -> Answer:
    """An answer as a fault leaves it."""
    if fault == "raise":
        return replace(answer, result=Failure(RuntimeError("a kernel failed")))
    if fault == "memory":
        return replace(answer, result=Failure(RuntimeError("CUDA out of memory")))
    if fault == "nan" and isinstance(answer.result, torch.Tensor):
        certainty = None if answer.certainty is None else answer.certainty * float("nan")
        return replace(answer, result=answer.result * float("nan"), certainty=certainty)
    return answer


@contextmanager
def faulty_ensemble(models=None, **settings):
    """An ensemble, of the embedded members unless others are given, and its `FaultyExecutor`."""
    executors: list[FaultyExecutor] = []

    def new_executor(listener):
        executors.append(FaultyExecutor(listener=listener))
        return executors[-1]

    names = [f"m{index}" for index in range(len(models or EMBEDDED))]
    members = [
        Member.from_model(*given, name)
        for given, name in zip(models or [pair(folder) for folder in EMBEDDED], names, strict=True)
    ]
    config = EnsembleConfig(tuple(MemberConfig(name) for name in names), **settings)
    ensemble = Ensemble.__new__(Ensemble)
    ensemble._attach(connect(members, config, place=Place("faulty", new_executor)))
    try:
        yield ensemble, executors[0]
    finally:
        executors[0].restore()
        ensemble.close()
