"""What a step costs on Ray against the same members in this process: milliseconds, bytes, and how far members overlap.

Run by ``python -m benchmarks.distributed`` with the models in the folder ``GAC_REAL_MODELS``, or with ``--folders``.
Both sides use one thread per member and answer in turn, several times. Figures are medians of all steps, with the first
and the last decile. The texts of both sides are compared.
"""

from __future__ import annotations

import os

# Ray gives actors one thread; the members of this process must have no more. Must be known before torch is imported.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("RAY_AUTH_MODE", "token")

import argparse
import functools
import itertools
import operator
import secrets
import statistics
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))

from rich.console import Console
from rich.table import Table

from benchmarks.messages import Messages
from benchmarks.real_accuracy import REAL
from benchmarks.scale_cost import LINKS, exchanges, seconds
from gac_core import Ensemble, EnsembleConfig, Grammar, MemberConfig
from gac_core.executor.ray.process import Traffic

# Short, so that reading it takes about as long as one step.
PROMPT = "Once upon a time, in a village by the sea,"
KINDS: dict[str, dict[str, Any]] = {
    "greedy": {"drafts": False},
    "greedy, drafts": {},
    "threshold 0.9": {"threshold": 0.9, "drafts": False},
    "a grammar": {"grammar": Grammar.regex(r"[a-z ,.\n]+"), "drafts": False},
    "sampled": {"temperature": 1.0, "seed": 1, "drafts": False},
}
# What each kind is called in `benchmarks.scale_cost`, which predicts its cost.
PREDICTED = {"greedy": "greedy", "a grammar": "greedy, a grammar", "sampled": "sampled"}


@dataclass(frozen=True)
class Forward:
    """One call of the executor: a step, or one of two where a gate is asked first.

    Attributes:
        seconds: From its beginning to that of the next one: selection and commit included.
        members: Seconds of each member's forward, measured beside the model.
    """

    seconds: float
    members: tuple[float, ...]

    @property
    def beyond_slowest(self) -> float:
        """Seconds beyond the forward of the slowest member."""
        return self.seconds - max(self.members)

    @property
    def beyond_sum(self) -> float:
        """Seconds beyond the forwards of all members."""
        return self.seconds - sum(self.members)


@dataclass(frozen=True)
class Turns:
    """Several answers of one ensemble to one prompt.

    Attributes:
        texts: Their texts, which should be one.
        forwards: All calls of the executor but the first and the last of each answer.
        steps: Number of steps.
        seconds_per_token: Of each answer, its prompt included.
        traffic: What crossed between this process and the actors.
    """

    texts: frozenset[str]
    forwards: tuple[Forward, ...]
    steps: int
    seconds_per_token: tuple[float, ...]
    traffic: Traffic

    def __add__(self, other: Turns) -> Turns:
        sums = (getattr(self.traffic, name) + getattr(other.traffic, name) for name in ("calls", "sent", "received"))
        return Turns(
            texts=self.texts | other.texts,
            forwards=self.forwards + other.forwards,
            steps=self.steps + other.steps,
            seconds_per_token=self.seconds_per_token + other.seconds_per_token,
            traffic=Traffic(*sums),
        )

    @property
    def per_token(self) -> str:
        """Milliseconds of a token: the median answer, and the fastest and the slowest."""
        values = [1e3 * each for each in self.seconds_per_token]
        return f"{statistics.median(values):.1f} ({min(values):.1f} to {max(values):.1f})"


class Rig:
    """An ensemble whose calls of members are recorded.

    Args:
        folders: The members.
        dtype: Of their weights.
        executor: ``"local"`` or ``"ray"``.
    """

    def __init__(self, folders: Sequence[str], dtype: str, executor: str) -> None:
        members = tuple(MemberConfig(folder, dtype=dtype, device="cpu") for folder in folders)
        # Without prefix caching every turn does the same work.
        self.ensemble = Ensemble.from_config(EnsembleConfig(members, executor=executor, cache_gib=0.0))
        self._executor: Any = self.ensemble._session.worker._engine._executor
        self._inner = self._executor.forward
        self._executor.forward = self._forward
        self._calls: list[tuple[float, tuple[float, ...]]] = []

    def _forward(self, asks: Any, prefill_seconds: float | None = None) -> Any:
        began = time.perf_counter()
        answers = self._inner(asks, prefill_seconds)
        self._calls.append((began, tuple(sum(each.seconds for each in own) for own in answers.values())))
        return answers

    def answer(self, asked: dict[str, Any], tokens: int) -> Turns:
        """Generates one answer."""
        self._calls, before = [], self._traffic()
        output = self.ensemble.generate(PROMPT, max_tokens=tokens, **asked)
        crossed = Traffic(*(now - then for now, then in zip(self._traffic(), before, strict=True)))
        # The first call reads the prompt; how long the last one takes is not known.
        forwards = [
            Forward(after - began, members) for (began, members), (after, _) in itertools.pairwise(self._calls[1:])
        ]
        seconds = (output.stats.total_seconds - output.stats.queued_seconds) / len(output.tokens)
        return Turns(frozenset([output.text]), tuple(forwards), output.stats.steps, (seconds,), crossed)

    def _traffic(self) -> tuple[int, int, int]:
        if self.ensemble.config.executor != "ray":
            return 0, 0, 0
        counted = [self._executor.traffic(member.member_id) for member in self.ensemble._members]
        return tuple(sum(getattr(each, name) for each in counted) for name in ("calls", "sent", "received"))


def in_turn(rigs: Sequence[Rig], asked: dict[str, Any], tokens: int, repeats: int) -> list[Turns]:
    """Returns the answers of each rig, which answer one after the other; their first answers are a warm-up."""
    turns: list[list[Turns]] = [[] for _ in rigs]
    for _ in range(repeats + 1):
        for rig, own in zip(rigs, turns, strict=True):
            own.append(rig.answer(asked, tokens))
    return [functools.reduce(operator.add, own[1:]) for own in turns]


def spread(turns: Turns, of: Callable[[Forward], float], scale: float = 1e3, digits: int = 1) -> str:
    """Formats the median of a measure of calls, and its first and last decile."""
    values = sorted(scale * of(forward) for forward in turns.forwards)
    low, high = values[len(values) // 10], values[-1 - len(values) // 10]
    return f"{statistics.median(values):.{digits}f} ({low:.{digits}f} to {high:.{digits}f})"


def prediction(folders: Sequence[str], ensemble: Ensemble) -> str:
    """Returns what `benchmarks.scale_cost` computes for one machine, before anything is measured."""
    (link,) = (link for link in LINKS if link.name == "Ray, one machine")
    tokenizer = ensemble._members[0].tokenizer
    kinds = {kind.name: kind for kind in exchanges(Messages(ensemble._union, tokenizer))}
    count = len(folders)
    parts = [
        f"{name}: {1e3 * seconds(kinds[PREDICTED[name]], link, count):.2f} ms and "
        f"{count * (sum(kinds[PREDICTED[name]].sent) + sum(kinds[PREDICTED[name]].answered)):,} bytes a step"
        for name in PREDICTED
    ]
    return f"predicted messages, {count} members: " + "; ".join(parts)


def measure(folders: Sequence[str], args: argparse.Namespace, tables: Sequence[Table]) -> None:
    """Adds the rows of one set of members."""
    names = "+".join(Path(folder).name for folder in folders)
    with ExitStack() as stack:
        rigs = [Rig(folders, args.dtype, executor) for executor in ("local", "ray")]
        for rig in rigs:
            stack.enter_context(rig.ensemble)
        print(prediction(folders, rigs[0].ensemble), flush=True)
        for kind in args.kinds if len(folders) == 2 else ["greedy"]:
            local, ray = in_turn(rigs, KINDS[kind], args.tokens, args.repeats)
            row = (
                names,
                kind,
                local.per_token,
                ray.per_token,
                spread(local, lambda forward: forward.beyond_sum),
                spread(ray, lambda forward: forward.beyond_slowest),
                f"{(ray.traffic.sent + ray.traffic.received) / ray.steps:,.0f}",
                f"{ray.traffic.calls / ray.steps:.2f}",
                "yes" if len(local.texts | ray.texts) == 1 else "no",
            )
            tables[0].add_row(*row)
            print(*row, f"load {os.getloadavg()[0]:.1f}", sep=" | ", flush=True)
            if kind == "greedy":
                tables[1].add_row(names, *overlap(ray))


def overlap(turns: Turns) -> list[str]:
    """Returns the cells of a step of all members against the slowest and the sum of their forwards."""
    return [
        spread(turns, lambda forward: max(forward.members)),
        spread(turns, lambda forward: sum(forward.members)),
        spread(turns, lambda forward: forward.seconds),
        spread(turns, lambda forward: forward.seconds / max(forward.members), 1.0, 2),
        spread(turns, lambda forward: forward.seconds / sum(forward.members), 1.0, 2),
    ]


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folders", nargs="+", default=[str(REAL / name) for name in ("smollm2", "qwen", "gemma3")])
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--kinds", nargs="+", choices=KINDS, default=list(KINDS), help="requests of two members")
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    steps = Table(
        *(
            "members",
            "request",
            "local: ms a token",
            "Ray: ms a token",
            "local: ms of a step beyond the sum of forwards",
        ),
        *("Ray: ms of a step beyond the slowest", "bytes a step", "calls a step", "same text"),
        title=f"{args.dtype}, {args.repeats} answers of {args.tokens} tokens: median (deciles)",
    )
    overlaps = Table(
        *("members on Ray", "slowest forward, ms", "sum, ms", "step, ms", "step / slowest", "step / sum"),
        title="overlap",
    )
    for count in range(1, len(args.folders) + 1):
        measure(args.folders[:count], args, (steps, overlaps))
    for table in (steps, overlaps):
        Console(width=200).print(table)


if __name__ == "__main__":
    main()
