"""Wall times of the engine as ratios to its members' own ``model.generate``, measured side by side in one run.

Run by ``python -m benchmarks.speed TOKENIZER TOKENIZER`` (folders or hub names). Every case is warmed up, then all
cases are run in turn, several times over; a figure is the median of its ratios, with the smallest and the largest.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from benchmarks.scripted import Scripted, make
from gac_core import Ensemble, EnsembleConfig, MemberConfig
from gac_core.member import Member
from gac_core.tokenizer import MemberTokenizer

PROSE = Path(__file__).parent.parent / "docs" / "architecture.md"
CODE = Path(__file__).parent.parent / "gac_core" / "engine.py"
PROMPT = "The text goes on from here as it does in the document that everybody has read before:\n"


def plain(model: Scripted, ids: list[int], count: int) -> float:
    """Seconds of the model's own generate."""
    model.ids = []
    prompt = torch.tensor([ids])
    began = time.perf_counter()
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, min_new_tokens=count, do_sample=False
    )
    return time.perf_counter() - began


def ensemble_of(models: list[Scripted], alignment: str) -> Ensemble:
    """An ensemble of scripted models, which are then its own."""
    names = [f"m{index}" for index in range(len(models))]
    config = EnsembleConfig(tuple(MemberConfig(name) for name in names), alignment=alignment)
    members = [Member.from_model(model, model.bytes.hf, name) for model, name in zip(models, names, strict=True)]
    return Ensemble(members, config)


class Case:
    """One ratio: seconds of the engine over seconds of what it is compared with."""

    def __init__(self, name: str, target: str, engine: Callable[[], float], other: Callable[[], float]) -> None:
        self.name, self.target, self.engine, self.other = name, target, engine, other
        self.ratios: list[float] = []

    def run(self) -> None:
        """Measures both sides once, one after the other."""
        self.ratios.append(self.engine() / self.other())


def cases_of(kind: str, tokenizers: list[MemberTokenizer], script: str, args: argparse.Namespace) -> list[Case]:
    """The cases on one text."""
    models = [make(t, PROMPT, script, args.width, args.layers, seed) for seed, t in enumerate(tokenizers)]
    prompts = [tokenizer.encode_prompt(PROMPT) for tokenizer in tokenizers]
    alone = ensemble_of(models[:1], "token")
    both = {alignment: ensemble_of(models, alignment) for alignment in ("token", "boundary")}
    text = alone.generate(PROMPT, max_tokens=args.tokens).text
    counts = [len(t.cut(text) or t.write(text.encode())) for t in tokenizers]

    def engine(ensemble: Ensemble, **asked: object) -> float:
        began = time.perf_counter()
        written = ensemble.generate(PROMPT, max_tokens=4 * args.tokens, stop=(text[-24:],), **asked).text
        seconds = time.perf_counter() - began
        assert text.startswith(written), (text[-80:], written[-80:])
        return seconds

    def generate(*which: int) -> float:
        return sum(plain(models[index], prompts[index], counts[index]) for index in which)

    return [
        Case(f"{kind}: one member", "1.00", lambda: engine(alone), lambda: generate(0)),
        Case(f"{kind}: every step, token alignment", "1.00", lambda: engine(both["token"]), lambda: generate(0, 1)),
        Case(f"{kind}: every step, boundary", "", lambda: engine(both["boundary"]), lambda: generate(0, 1)),
        Case(
            f"{kind}: thresholded, never ensembles",
            "0.55",
            lambda: engine(both["token"], threshold=0.0),
            lambda: generate(0, 1),
        ),
        Case(
            f"{kind}: thresholded, against the gate alone",
            "1.05",
            lambda: engine(both["token"], threshold=0.0),
            lambda: generate(0),
        ),
    ]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", nargs=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    tokenizers = [
        MemberTokenizer(AutoTokenizer.from_pretrained(name), f"m{i}") for i, name in enumerate(args.tokenizers)
    ]
    cases = [
        case
        for kind, path in (("prose", PROSE), ("code", CODE))
        for case in cases_of(kind, tokenizers, path.read_text(encoding="utf-8"), args)
    ]
    for case in cases:
        case.engine()
        case.other()
    for _ in range(args.repeats):
        for case in cases:
            case.run()
    table = Table("case", "target", "ratio, median", "smallest", "largest")
    for case in cases:
        low, high = min(case.ratios), max(case.ratios)
        table.add_row(case.name, case.target, f"{statistics.median(case.ratios):.2f}", f"{low:.2f}", f"{high:.2f}")
    Console(width=110).print(table)


if __name__ == "__main__":
    main()
