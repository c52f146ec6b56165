"""Shared by the examples on real models: arguments, tasks, and the comparison with each member alone."""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from gac_core import AnswerError, Ensemble, MemberConfig
from gac_core.evaluation.statistics import compare, mean_interval

HERE = Path(__file__).parent
MODELS = ("HuggingFaceTB/SmolLM2-135M-Instruct", "Qwen/Qwen2.5-Coder-0.5B-Instruct", "google/gemma-3-270m")
EMBEDDINGS = "sentence-transformers/all-MiniLM-L6-v2"


@dataclass(frozen=True)
class Task:
    """A question with its accepted answers, and what else an example knows of it."""

    question: str
    answers: tuple[str, ...]
    known: Any = None


@dataclass(frozen=True)
class Solved:
    """What an example made of a task."""

    answer: str
    # 0 to 1.
    score: float
    # The statistics (``gac``) of each answer of the model on the way.
    calls: Sequence[Mapping[str, Any]]
    # Lines for the reader: sources, or calls of tools.
    shown: Sequence[str] = ()


@dataclass(frozen=True)
class Example:
    """An example that can be run with several models of the loaded ensemble."""

    # Takes ``weights``, ``gate`` and ``threshold``.
    model: Callable[..., Any]
    solve: Callable[[Any, Task], Solved]
    tasks: Sequence[Task]


Build = Callable[[argparse.Namespace, Ensemble], Example]


def parser(description: str | None, weights: Sequence[float], threshold: float | None) -> argparse.ArgumentParser:
    """Returns the command line of an example.

    Args:
        description: The example's docstring.
        weights: Default weights of the three default models, in their order.
        threshold: Default threshold.
    """
    made = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    made.add_argument("--models", nargs="+", default=list(MODELS), help="folders or hub names")
    made.add_argument("--weights", nargs="+", type=float, help=f"one per model; 0 leaves it out ({_spoken(weights)})")
    made.set_defaults(default_weights=list(weights))
    made.add_argument("--gate", help="name of the member that decides alone where it is certain (default: the largest)")
    made.add_argument("--threshold", type=float, default=threshold, help="certainty at which the gate decides alone")
    made.add_argument("--dtype", default="bfloat16")
    made.add_argument("--limit", type=int, default=4, help="number of tasks")
    made.add_argument("--data", type=Path, default=HERE / "handbook.json", help="passages and questions, as SQuAD's")
    made.add_argument("--embeddings", default=EMBEDDINGS, help="embedding model of the retrieval examples")
    made.add_argument("--seed", type=int, default=0, help="seed of generated tasks")
    return made


def _spoken(weights: Sequence[float]) -> str:
    return f"default for three models: {' '.join(f'{weight:g}' for weight in weights)}, else 1 each"


def weights_of(args: argparse.Namespace) -> list[float]:
    """Returns the weights of the command line, or the default for its number of models."""
    given: list[float] | None = args.weights
    if given is None:
        given = args.default_weights if len(args.default_weights) == len(args.models) else [1.0] * len(args.models)
    return given


def load(args: argparse.Namespace, **settings: Any) -> Ensemble:
    """Loads the members. A base model, which has no chat template, reads conversations as plain text.

    Args:
        args: The command line.
        **settings: Further settings of `Ensemble.load`.
    """
    members = []
    for model in args.models:
        template = None if AutoTokenizer.from_pretrained(model).chat_template else "plain"
        members.append(MemberConfig(model, chat_template=template))
    return Ensemble.load(members, dtype=args.dtype, **settings)


def run(args: argparse.Namespace, build: Build) -> None:
    """Solves the first tasks with the ensemble, then with each member alone, and prints what the ensemble gained."""
    console = Console(highlight=False)
    with load(args) as ensemble:
        example = build(args, ensemble)
        tasks = example.tasks[: args.limit]
        models = {"ensemble": example.model(weights=weights_of(args), gate=args.gate, threshold=args.threshold)}
        # A gate that may always decide alone is this member by itself.
        models |= {name: example.model(gate=name, threshold=0.0) for name in ensemble.names}
        solved: dict[str, list[Solved]] = {}
        seconds: dict[str, float] = {}
        for name, model in models.items():
            began = time.perf_counter()
            solved[name] = list(_solve(example, model, tasks, console if name == "ensemble" else None))
            seconds[name] = time.perf_counter() - began
    console.print(results(solved, seconds))
    console.print(gain({name: [each.score for each in own] for name, own in solved.items()}))


def _solve(example: Example, model: Any, tasks: Sequence[Task], console: Console | None) -> Iterable[Solved]:
    for task in tasks:
        try:
            solved = example.solve(model, task)
        except AnswerError as error:
            # Such as a tool call that max_tokens truncates.
            solved = Solved(f"none: {error}", 0.0, [])
        if console is not None:
            lines = [f"Q: {task.question}", *solved.shown, f"A: {solved.answer}  (expected: {task.answers[0]})", ""]
            console.print("\n".join(lines), markup=False)
        yield solved


def results(solved: Mapping[str, Sequence[Solved]], seconds: Mapping[str, float]) -> Table:
    """Returns a table of scores, ensembled steps and seconds by name of the model."""
    table = Table("answered by", "score", "95% interval", "steps ensembled", "seconds")
    for name, own in solved.items():
        score = mean_interval([each.score for each in own])
        share = f"{share_ensembled(own):.0%}" if name == "ensemble" else ""
        table.add_row(name, f"{score.value:.1%}", f"{score.low:.1%} to {score.high:.1%}", share, f"{seconds[name]:.1f}")
    return table


def share_ensembled(solved: Iterable[Solved]) -> float:
    """Returns the share of all steps that were ensembled."""
    calls = [call for each in solved for call in each.calls]
    return sum(call["steps_ensembled"] for call in calls) / max(1, sum(call["steps"] for call in calls))


def gain(scores: Mapping[str, Sequence[float]]) -> str:
    """Returns what the ensemble gained against its best member on the same tasks, with a paired bootstrap interval."""
    best = max((name for name in scores if name != "ensemble"), key=lambda name: sum(scores[name]))
    gained = compare(scores["ensemble"], scores[best]).difference
    verdict = "a gain" if gained.low > 0 else "a loss" if gained.high < 0 else "no difference that is certain"
    return (
        f"ensemble minus {best}, its best member: {100 * gained.value:+.1f} points "
        f"({100 * gained.low:+.1f} to {100 * gained.high:+.1f}, n = {len(scores[best])}): {verdict}"
    )
