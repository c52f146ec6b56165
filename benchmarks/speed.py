"""Wall times of the engine as ratios to its members' own ``model.generate``, measured side by side in one run.

Run by ``python -m benchmarks.speed TOKENIZER TOKENIZER`` (folders or hub names). Every case is warmed up, then all
cases are run in turn, several times; a figure is the median of its ratios, with the smallest and the largest.
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
from gac_core.model.member import Member
from gac_core.tokenization.tokenizer import MemberTokenizer

# Fixed texts, so that results of different versions of the code are comparable.
PROSE = Path(__file__).parent / "texts" / "prose.txt"
CODE = Path(__file__).parent / "texts" / "code.txt"
DRAFTS = ("lookup", "ahead")
PROMPT = "The text goes on from here as it does in the document that everybody has read before:\n"


def plain(model: Scripted, ids: list[int], count: int) -> float:
    """Returns the seconds of the model's own ``generate``."""
    model.ids = []
    prompt = torch.tensor([ids])
    began = time.perf_counter()
    model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=count, min_new_tokens=count, do_sample=False
    )
    return time.perf_counter() - began


def ensemble_of(models: list[Scripted], drafts: tuple[str, ...] = ()) -> Ensemble:
    """Returns an ensemble that owns the scripted models, without prefix caching, as in ``generate``."""
    names = [f"m{index}" for index in range(len(models))]
    config = EnsembleConfig(tuple(MemberConfig(name) for name in names), drafts=drafts)
    members = [
        Member.from_model(model, model.bytes.hf, name, cache_bytes=0) for model, name in zip(models, names, strict=True)
    ]
    return Ensemble(members, config)


class Case:
    """One ratio: seconds of the engine over seconds of its baseline."""

    def __init__(self, name: str, target: str, engine: Callable[[], float], other: Callable[[], float]) -> None:
        self.name, self.target, self.engine, self.other = name, target, engine, other
        self.ratios: list[float] = []

    def run(self) -> None:
        """Measures both sides once."""
        self.ratios.append(self.engine() / self.other())


class Bench:
    """Two scripted models of one text, their ensembles, and the baseline of their own ``generate``.

    Args:
        tokenizers: Two tokenizers.
        prompt: The prompt.
        script: The text that the models generate.
        args: Sizes.
    """

    def __init__(self, tokenizers: list[MemberTokenizer], prompt: str, script: str, args: argparse.Namespace) -> None:
        self.prompt = prompt
        self.tokens = args.tokens
        self.models = [make(t, prompt, script, args.width, args.layers, seed) for seed, t in enumerate(tokenizers)]
        self.prompts = [tokenizer.encode_prompt(prompt) for tokenizer in tokenizers]
        self.text = ensemble_of(self.models[:1]).generate(prompt, max_tokens=args.tokens).text
        # The shortest ending of the text that occurs nowhere else in it.
        lengths = range(24, len(self.text))
        self.stop = next(end for n in lengths if self.text.find(end := self.text[-n:]) == len(self.text) - n)
        self.counts = [len(t.encode_continuation(self.text) or t.encode_bytes(self.text.encode())) for t in tokenizers]

    def engine(self, ensemble: Ensemble, **asked: object) -> float:
        """Returns the seconds of an ensemble."""
        began = time.perf_counter()
        written = ensemble.generate(self.prompt, max_tokens=4 * self.tokens, stop=(self.stop,), **asked).text
        seconds = time.perf_counter() - began
        assert self.text.startswith(written), (self.text[-80:], written[-80:])
        assert len(written) >= len(self.text) - len(self.stop), (len(self.text), len(written))
        return seconds

    def own(self, *which: int) -> float:
        """Returns the total seconds of the models' own ``generate``."""
        return sum(plain(self.models[index], self.prompts[index], self.counts[index]) for index in which)

    def case(self, name: str, target: str, ensemble: Ensemble, *which: int, **asked: object) -> Case:
        """Returns a case with the models' own ``generate`` as the baseline."""
        return Case(name, target, lambda: self.engine(ensemble, **asked), lambda: self.own(*which))


def text_cases(kind: str, target: str, bench: Bench) -> list[Case]:
    """Returns the cases on one text, without drafts."""
    both = ensemble_of(bench.models)
    return [
        bench.case(f"{kind}: one member", "1.00", ensemble_of(bench.models[:1]), 0),
        bench.case(f"{kind}: every step", target, both, 0, 1),
        bench.case(f"{kind}: thresholded, never ensembles", "0.55", both, 0, 1, threshold=0.0),
        bench.case(f"{kind}: thresholded, against the gate alone", "1.05", both, 0, threshold=0.0),
    ]


def draft_cases(prose: Bench, quote: Bench) -> list[Case]:
    """Returns the cases with drafts."""
    return [
        prose.case("prose: every step, gate drafts", "0.85", ensemble_of(prose.models, drafts=("ahead",)), 0, 1),
        prose.case("prose: every step, all drafts", "", ensemble_of(prose.models, drafts=DRAFTS), 0, 1),
        quote.case("quotes: every step, drafts off", "", ensemble_of(quote.models), 0, 1),
        quote.case("quotes: every step, drafts on", "0.60", ensemble_of(quote.models, drafts=DRAFTS), 0, 1),
        quote.case(
            "quotes: thresholded, never ensembles, drafts on",
            "",
            ensemble_of(quote.models, drafts=DRAFTS),
            0,
            1,
            threshold=0.0,
        ),
    ]


def quoting(document: str) -> tuple[str, str]:
    """Returns a prompt with a document, and an answer that quotes it."""
    text = " ".join(document.split())
    sentences = [part.strip() for part in text[:2400].split(". ")]
    quotes = [sentence for sentence in sentences if 40 < len(sentence) < 160]
    answer = " ".join(f'On this the document says: "{quote}".' for quote in quotes[1::2])
    return f"{text[:2400]}\n\nWhat does the document say of its parts?\n", answer


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", nargs=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--only", default="", help="run only the cases whose name contains this")
    args = parser.parse_args()
    tokenizers = [
        MemberTokenizer(AutoTokenizer.from_pretrained(name), f"m{i}") for i, name in enumerate(args.tokenizers)
    ]
    prose = Bench(tokenizers, PROMPT, PROSE.read_text(encoding="utf-8"), args)
    code = Bench(tokenizers, PROMPT, CODE.read_text(encoding="utf-8"), args)
    quote = Bench(tokenizers, *quoting(PROSE.read_text(encoding="utf-8")), args)
    cases = [
        *text_cases("prose", "1.00", prose),
        *text_cases("code", "1.05", code),
        *draft_cases(prose, quote),
    ]
    if args.only:
        cases = [case for case in cases if args.only in case.name]
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
