"""Cost of a step with members on devices of their own, against the members alone and against one device for all.

Run by ``python -m benchmarks.overlap`` on Linux, with the models in the folder ``GAC_REAL_MODELS``. Each device of the
CPU (``cpu:0``, ``cpu:1``) is a thread, which is pinned to a core of its own; torch computes with one thread in each.
All configurations generate the same number of tokens in turn, several times, without drafts. A figure is the median
over the turns of milliseconds per token, with the smallest and the largest; ratios are formed within a turn.
"""

from __future__ import annotations

import argparse
import os
import statistics
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from benchmarks.real_accuracy import REAL
from gac_core import Ensemble

PROMPT = "Write a short story about a lighthouse keeper who finds a map."


@dataclass(frozen=True)
class Setup:
    """A configuration to measure.

    Attributes:
        name: What it is called in the table.
        ensemble: The ensemble.
    """

    name: str
    ensemble: Ensemble


class Pinned:
    """Pins the threads that run a model's forwards to one core.

    Args:
        ensemble: The ensemble whose members run in these threads.
        cores: One core per device name.
    """

    def __init__(self, ensemble: Ensemble, cores: dict[str, int]) -> None:
        self._done = threading.local()
        for member in ensemble._members:
            core = cores.get(str(member.device), min(cores.values()))

            def pin(*_: Any, core: int = core) -> None:
                if getattr(self._done, "core", None) != core:
                    os.sched_setaffinity(0, {core})
                    self._done.core = core

            member._runner._model.register_forward_pre_hook(pin)


def seconds(ensemble: Ensemble, tokens: int) -> float:
    """Seconds per token of one answer."""
    began = time.perf_counter()
    output = ensemble.generate(PROMPT, max_tokens=tokens, drafts=False)
    return (time.perf_counter() - began) / max(1, output.usage.completion_tokens)


def shown(values: Sequence[float], scale: float = 1.0, digits: int = 2) -> str:
    """The median with the smallest and the largest value."""
    low, middle, high = min(values) * scale, statistics.median(values) * scale, max(values) * scale
    return f"{middle:.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def setups(names: Sequence[str], dtype: str, cores: Sequence[int]) -> list[Setup]:
    """Each member alone, all on one device, and each on a device of its own."""
    devices = [f"cpu:{index}" for index in range(len(names))]
    places = dict(zip(devices, cores, strict=False))
    settings: dict[str, Any] = {"dtype": dtype, "progress": False}
    made = [
        Setup(name, Ensemble.load([REAL / name], device=device, **settings))
        for name, device in zip(names, devices, strict=True)
    ]
    folders = [REAL / name for name in names]
    made.append(Setup("together, one device", Ensemble.load(folders, device=devices[0], **settings)))
    own = [{"model": str(folder), "device": device} for folder, device in zip(folders, devices, strict=True)]
    made.append(Setup("together, own devices", Ensemble.load(own, **settings)))
    for setup in made:
        Pinned(setup.ensemble, places)
    return made


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
        seconds(setup.ensemble, args.tokens)
    turns = [{setup.name: seconds(setup.ensemble, args.tokens) for setup in made} for _ in range(args.repeats)]
    sums = [sum(turn[name] for name in args.models) for turn in turns]
    slowest = [max(turn[name] for name in args.models) for turn in turns]
    table = Table("configuration", "ms per token", "of the sum of members alone", "of the slowest member alone")
    for setup in made:
        own = [turn[setup.name] for turn in turns]
        of_sum = [value / total for value, total in zip(own, sums, strict=True)]
        of_slowest = [value / most for value, most in zip(own, slowest, strict=True)]
        table.add_row(setup.name, shown(own, 1000, 1), shown(of_sum), shown(of_slowest))
    print(f"{args.dtype}, {args.tokens} tokens, {args.repeats} turns, cores {cores}, load {os.getloadavg()[0]:.1f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
