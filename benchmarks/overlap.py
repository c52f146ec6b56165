"""Cost of a step with members on devices of their own, against the members alone and against one device for all.

Run by ``python -m benchmarks.overlap`` on Linux, with the models in the folder ``GAC_REAL_MODELS``. Each device of the
CPU (``cpu:0``, ``cpu:1``) is a thread, which is pinned to a core of its own; torch computes with one thread in each.
All configurations generate the same number of tokens in turn, several times, without drafts. A figure is the median
over the turns of milliseconds per token, with the smallest and the largest; ratios are formed within a turn.

The last column does not depend on what else the machine runs: the CPU time of the process, of which only the slowest
member's forwards count where members are on devices of their own.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.real_accuracy import REAL
from gac_core import Ensemble

PROMPT = "Write a short story about a lighthouse keeper who finds a map."


@dataclass(frozen=True)
class Turn:
    """One answer.

    Attributes:
        wall: Seconds per token.
        path: CPU seconds per token on the longest path.
    """

    wall: float
    path: float


class Setup:
    """A configuration to measure. The threads that run its forwards are pinned, each to the core of its device.

    Args:
        name: What it is called in the table.
        ensemble: The ensemble.
        cores: One core per device name.
    """

    def __init__(self, name: str, ensemble: Ensemble, cores: dict[str, int]) -> None:
        self.name = name
        self._ensemble = ensemble
        self._local = threading.local()
        # CPU seconds in forwards, by device.
        self._spent: dict[str, float] = {}
        for member in ensemble._members:
            device = str(member.device)
            model: Any = member._runner._model
            model.register_forward_pre_hook(partial(self._enter, cores[device]))
            model.register_forward_hook(partial(self._leave, device))

    def _enter(self, core: int, *_: Any) -> None:
        if getattr(self._local, "core", None) != core:
            os.sched_setaffinity(0, {core})
            self._local.core = core
        self._local.began = time.thread_time()

    def _leave(self, device: str, *_: Any) -> None:
        self._spent[device] = self._spent.get(device, 0.0) + time.thread_time() - self._local.began

    def run(self, tokens: int) -> Turn:
        """Generates one answer."""
        self._spent = {}
        cpu, wall = time.process_time(), time.perf_counter()
        output = self._ensemble.generate(PROMPT, max_tokens=tokens, drafts=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        count = max(1, output.usage.completion_tokens)
        return Turn(wall / count, (cpu - sum(self._spent.values()) + max(self._spent.values())) / count)


def shown(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """The median with the smallest and the largest value."""
    low, middle, high = min(values) * scale, statistics.median(values) * scale, max(values) * scale
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def setups(names: Sequence[str], dtype: str, cores: Sequence[int]) -> list[Setup]:
    """Each member alone, all on one device, and each on a device of its own."""
    devices = [f"cpu:{index}" for index in range(len(names))]
    places = dict(zip(devices, cores, strict=False))
    folders = [REAL / name for name in names]
    settings: dict[str, Any] = {"dtype": dtype, "progress": False}
    loaded = {
        name: Ensemble.load([folder], device=device, **settings)
        for name, folder, device in zip(names, folders, devices, strict=True)
    }
    loaded["together, one device"] = Ensemble.load(folders, device=devices[0], **settings)
    own = [{"model": str(folder), "device": device} for folder, device in zip(folders, devices, strict=True)]
    loaded["together, own devices"] = Ensemble.load(own, **settings)
    return [Setup(name, ensemble, places) for name, ensemble in loaded.items()]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["smollm2", "gemma3"])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=7)
    args = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    if len(cores) < len(args.models):
        raise SystemExit(f"{len(args.models)} members need as many cores; this process may use {len(cores)}")
    torch.set_num_threads(1)
    made = setups(args.models, args.dtype, cores)
    for setup in made:
        setup.run(args.tokens)
    turns = [{setup.name: setup.run(args.tokens) for setup in made} for _ in range(args.repeats)]
    sums = [sum(turn[name].wall for name in args.models) for turn in turns]
    slowest = [max(turn[name].wall for name in args.models) for turn in turns]
    table = Table(
        *("configuration", "ms per token", "of the sum of members alone", "of the slowest member alone"),
        "CPU ms per token, longest path",
    )
    for setup in made:
        own = [turn[setup.name] for turn in turns]
        of_sum = [turn.wall / total for turn, total in zip(own, sums, strict=True)]
        of_slowest = [turn.wall / most for turn, most in zip(own, slowest, strict=True)]
        wall, path = [turn.wall for turn in own], [turn.path for turn in own]
        table.add_row(setup.name, shown(wall, 1000, 1), shown(of_sum), shown(of_slowest), shown(path, 1000, 1))
    print(f"{args.dtype}, {args.tokens} tokens, {args.repeats} turns, cores {cores}, load {os.getloadavg()[0]:.1f}")
    Console(width=150).print(table)


if __name__ == "__main__":
    main()
