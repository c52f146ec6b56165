"""Random inputs of every kind, each answered by a process of its own that may neither die nor take long.

Each input must come to a right answer or to a `GaCError` of a bounded length. ``python tests/soak.py --count 10000``
prints a table; `test_soak.py` runs a few of them. Then members fail at random points (`random_faults.py`), and each
text must be that of the members that were left.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from random_faults import random_faults
from soak_inputs import (
    LONGEST_ERROR,
    MODELS,
    conversations,
    folders,
    grammars,
    json_schemas,
    parameters,
    prompts,
    tools,
    yaml_files,
)

from gac_core import Ensemble, GaCError


@dataclass(frozen=True)
class Outcome:
    """What became of one input.

    Attributes:
        kind: ``"answered"``, ``"refused"``, ``"wrong"``, ``"raised"``, ``"died"`` or ``"slow"``.
        detail: The class of the error, or what was wrong.
        seconds: How long it took.
    """

    kind: str
    detail: str
    seconds: float


KINDS: dict[str, tuple[Callable[[random.Random, Ensemble], str | None], int]] = {
    "parameters": (parameters, 20),
    "prompts": (prompts, 15),
    "conversations": (conversations, 15),
    "tools": (tools, 10),
    "schemas": (json_schemas, 15),
    "grammars": (grammars, 12),
    "yaml": (yaml_files, 10),
    "folders": (folders, 3),
}
"""What kinds there are, with their shares in per cent."""


def kind_of(seed: int) -> str:
    """The kind of the input with a number; any hundred neighbours hold each kind in its share."""
    return [kind for kind, (_, share) in KINDS.items() for _ in range(share)][seed * 37 % 100]


# ---- running them


def _answer(pipe: Any) -> None:
    """The process that answers: takes numbers, sends what became of the inputs with them."""
    import torch

    torch.set_num_threads(1)
    ensemble = Ensemble.load([str(MODELS / "ash"), str(MODELS / "cedar")], dtype="float32")
    pipe.send(None)
    while (seed := pipe.recv()) is not None:
        pipe.send(_outcome(seed, ensemble))


def _outcome(seed: int, ensemble: Ensemble) -> tuple[str, str]:
    try:
        wrong = KINDS[kind_of(seed)][0](random.Random(f"input {seed}"), ensemble)
    except GaCError as error:
        fits = 0 < len(str(error)) <= LONGEST_ERROR
        return ("refused", type(error).__name__) if fits else ("wrong", f"an error of {len(str(error))} characters")
    except BaseException as error:
        return "raised", f"{type(error).__name__}: {str(error)[:300]}"
    return ("answered", "") if wrong is None else ("wrong", wrong)


class Answerer:
    """The process that answers; started anew when it was lost."""

    def __init__(self, limit: float) -> None:
        self._limit = limit
        self._start()

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_answer, args=(theirs,), daemon=True)
        self._process.start()
        theirs.close()
        self._pipe.recv()

    def run(self, seed: int) -> Outcome:
        """Returns what becomes of the input with a number."""
        began = time.perf_counter()
        self._pipe.send(seed)
        try:
            if self._pipe.poll(self._limit):
                return Outcome(*self._pipe.recv(), time.perf_counter() - began)
            lost = Outcome("slow", f"no answer within {self._limit} s", self._limit)
        except (EOFError, ConnectionError):
            self._process.join(5)
            lost = Outcome("died", f"exit code {self._process.exitcode}", time.perf_counter() - began)
        self.close()
        self._start()
        return lost

    def close(self) -> None:
        """Ends the process."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def run(seeds: range, limit: float) -> dict[int, Outcome]:
    """Returns what becomes of the inputs with some numbers."""
    answerer = Answerer(limit)
    try:
        return {seed: answerer.run(seed) for seed in seeds}
    finally:
        answerer.close()


def report(outcomes: dict[int, Outcome]) -> str:
    """A table by kind of input, and every failure."""
    columns = ["answered", "refused", "wrong", "raised", "died", "slow"]
    lines = ["| input | " + " | ".join(columns) + " | slowest (s) |", "|---" * (len(columns) + 2) + "|"]
    for kind in KINDS:
        own = [outcome for seed, outcome in outcomes.items() if kind_of(seed) == kind]
        counts = Counter(outcome.kind for outcome in own)
        slowest = max((outcome.seconds for outcome in own), default=0.0)
        lines.append(f"| {kind} | " + " | ".join(str(counts[column]) for column in columns) + f" | {slowest:.1f} |")
    bad = {seed: outcome for seed, outcome in outcomes.items() if outcome.kind not in ("answered", "refused")}
    lines += [f"{seed} {kind_of(seed)}: {outcome.kind}: {outcome.detail}" for seed, outcome in bad.items()]
    return "\n".join(lines)


def main() -> None:
    """Runs many and prints a report; the exit status is 1 if any of them failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first input")
    parser.add_argument("--limit", type=float, default=5.0, help="seconds for each")
    parser.add_argument("--faults", type=int, default=2_000, help="faults of members")
    asked = parser.parse_args()
    outcomes = run(range(asked.first, asked.first + asked.count), asked.limit)
    print(report(outcomes))
    failed = any(outcome.kind not in ("answered", "refused") for outcome in outcomes.values())
    for compact in (False, True) if asked.faults else ():
        faults = random_faults(asked.first, asked.faults // 2, compact)
        print(faults)
        failed = failed or bool(faults.wrong or faults.hung)
    sys.exit(failed)


if __name__ == "__main__":
    main()
