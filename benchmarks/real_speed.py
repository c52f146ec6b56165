"""Times of ensembles of real models, as ratios to their members' own ``model.generate``, with drafts on and off.

Run by ``python -m benchmarks.real_speed`` with the models in the folder ``GAC_REAL_MODELS``. All configurations
run in turn, several times; a figure is the median of the ratios within a turn, with the smallest and the largest. Each
is given for the wall time and for the CPU time of this process, which other processes affect less.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.real_accuracy import REAL
from gac_core import Ensemble, EnsembleConfig, MemberConfig
from gac_core.chat.conversation import as_conversation
from gac_core.chat.rendered_prompt import render_prompt
from gac_core.model.member import Member

ROOT = Path(__file__).parent.parent
PASSAGE = " ".join((ROOT / "docs" / "architecture.md").read_text(encoding="utf-8").split())[:1500]
PROMPTS = {
    "chat": "Explain to a child why the sky is blue, and why sunsets are red.",
    "code": "Write a Python class for a bank account with methods to deposit, withdraw and show the balance.",
    "quotes": f"{PASSAGE}\n\nRepeat the first five sentences of this text word for word.",
}
# Chat template for members without one.
PLAIN = "{% for message in messages %}{{ message['content'] }}\n\n{% endfor %}"


def load(names: list[str], dtype: str) -> tuple[list[Any], list[Any]]:
    """Models and tokenizers."""
    tokenizers = [AutoTokenizer.from_pretrained(REAL / name) for name in names]
    for tokenizer in tokenizers:
        tokenizer.chat_template = tokenizer.chat_template or PLAIN
    return [AutoModelForCausalLM.from_pretrained(REAL / name, dtype=dtype).eval() for name in names], tokenizers


class Bench:
    """A set of models and the configurations in which it generates one answer.

    Args:
        models: The models.
        tokenizers: Their tokenizers.
        names: Their names.
        tokens: Tokens of an answer.
        deterministic: Whether to measure ``deterministic=True`` too.
    """

    def __init__(
        self, models: list[Any], tokenizers: list[Any], names: list[str], tokens: int, deterministic: bool
    ) -> None:
        self.models, self.tokens = models, tokens
        self.pairs = list(zip(models, tokenizers, names, strict=True))
        self.drafts = self.ensemble(cache_bytes=0)
        self.alone = self.ensemble(cache_bytes=0, deterministic=True) if deterministic else None

    def ensemble(self, **settings: Any) -> Ensemble:
        """Returns an ensemble without prefix caching, as in ``generate``."""
        members = [Member.from_model(*pair, **settings) for pair in self.pairs]
        configs = tuple(MemberConfig(name) for _, _, name in self.pairs)
        return Ensemble(members, EnsembleConfig(configs, deterministic=settings.get("deterministic", False)))

    def ways(self, kind: str) -> dict[str, Callable[[], str]]:
        """Returns the configurations by name; each generates one answer."""
        prompt = [{"role": "user", "content": PROMPTS[kind]}]
        text = self.drafts.generate(prompt, max_tokens=self.tokens, drafts=False).text
        tokenizers = [member.tokenizer for member in self.drafts._members]
        talk = as_conversation(prompt)
        assert talk is not None
        ids = [render_prompt(tokenizer, talk).encode() for tokenizer in tokenizers]
        counts = [len(tokenizer.encode_bytes(text.encode())) for tokenizer in tokenizers]

        def own() -> str:
            for model, prompt_ids, count in zip(self.models, ids, counts, strict=True):
                inputs = torch.tensor([prompt_ids])
                model.generate(
                    inputs,
                    attention_mask=torch.ones_like(inputs),
                    max_new_tokens=count,
                    min_new_tokens=count,
                    do_sample=False,
                )
            return ""

        def written(ensemble: Ensemble, drafts: bool) -> str:
            stats = ensemble.generate(prompt, max_tokens=self.tokens, drafts=drafts).stats
            return f"{stats.accepted}/{stats.drafted}"

        ways = {
            "own generate": own,
            "drafts off": lambda: written(self.drafts, False),
            "drafts on": lambda: written(self.drafts, True),
        }
        if self.alone is not None:
            alone = self.alone
            ways["deterministic"] = lambda: written(alone, False)
        return ways


def measure(ways: dict[str, Callable[[], str]], repeats: int) -> tuple[dict[str, list[tuple[float, float]]], str]:
    """Returns wall and CPU seconds of each configuration per turn, and the drafts of the last turn."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    drafts = ""
    for _ in range(repeats):
        for name, way in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            drafts = way() if name == "drafts on" else (way(), drafts)[1]
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return seconds, drafts


def ratio(over: list[tuple[float, float]], under: list[tuple[float, float]], clock: int) -> str:
    """Formats the median, smallest and largest ratio."""
    ratios = [a[clock] / b[clock] for a, b in zip(over, under, strict=True)]
    return f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=["smollm2", "qwen"])
    parser.add_argument("--dtypes", nargs="+", default=["float32", "bfloat16"])
    parser.add_argument("--kinds", nargs="+", default=list(PROMPTS))
    parser.add_argument("--tokens", type=int, default=96)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--deterministic", action="store_true", help="measure deterministic=True too")
    args = parser.parse_args()
    table = Table(
        "case", "ratio", "wall: median (range)", "CPU: median (range)", "drafts right", title="+".join(args.models)
    )
    for dtype in args.dtypes:
        bench = Bench(*load(args.models, dtype), args.models, args.tokens, args.deterministic)
        for kind in args.kinds:
            seconds, drafts = measure(bench.ways(kind), args.repeats)
            pairs = [("drafts off", "own generate"), ("drafts on", "own generate"), ("drafts on", "drafts off")]
            pairs += [("deterministic", "drafts off")] if args.deterministic else []
            for over, under in pairs:
                clocks = [ratio(seconds[over], seconds[under], clock) for clock in (0, 1)]
                table.add_row(f"{dtype} {kind}", f"{over} / {under}", *clocks, drafts if over == "drafts on" else "")
                print(dtype, kind, over, under, *clocks, drafts, flush=True)
    Console(width=130).print(table)


if __name__ == "__main__":
    main()
