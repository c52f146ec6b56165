"""Cost of grammars: milliseconds per token for masks on a union, and forwards per token of JSON.

Run by ``python -m benchmarks.grammar TOKENIZER TOKENIZER`` (folders or hub names). Masks are measured along texts that
the grammars allow; forwards are counted on the embedded members. Plain text takes one forward per token and member.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from gac_core import Ensemble, Grammar
from gac_core.grammar.compiler import Compiler
from gac_core.grammar.constraint import Constraint
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary

MODELS = Path(__file__).parent.parent / "examples" / "models"
PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 60},
        "age": {"type": "integer", "minimum": 0, "maximum": 130},
        "tags": {"type": "array", "items": {"enum": ["new", "old", "guest"]}, "maxItems": 3},
    },
    "required": ["name", "age", "tags"],
    "additionalProperties": False,
}
JSON = json.dumps({"name": "Ada of the old town by the river", "age": 36, "tags": ["new", "guest"]})
CALL = f'I will write it down. <tool_call>{{"name": "save", "arguments": {JSON}}}</tool_call>'
CASES = {
    "a JSON schema": (Grammar.json_schema(PERSON), JSON),
    "text or a tool call": (Grammar.tool_calls({"save": PERSON}), CALL),
    "a regular expression": (Grammar.regex(r"[A-Z][a-z]{2,9} [0-9]{4}-[0-9]{2}"), "Halkus 1874-05"),
}


def walk(constraint: Constraint, union: UnionVocabulary, text: bytes) -> list[float]:
    """Returns the milliseconds of each step's grammar work: forced tokens, mask, applying it, advancing."""
    combined = torch.full((len(union),), 1.0 / len(union))
    times, start = [], 0
    while start < len(text):
        began = time.perf_counter()
        forced = constraint.forced()
        if not forced:
            mask = constraint.mask(())
            allowed = combined * mask
            allowed /= allowed.sum()
            times.append(1000 * (time.perf_counter() - began))
            sizes = range(min(len(text) - start, 16), 0, -1)
            pieces = (text[start : start + size] for size in sizes)
            forced = [next(p for p in pieces if p in union.ids and bool(mask[union.ids[p]]))]
            began = time.perf_counter()
        for data in forced:
            assert data is not None
            constraint.accept(data)
            start += len(data)
        times[-1:] = [(times[-1] if times else 0.0) + 1000 * (time.perf_counter() - began)]
    return times


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", nargs="+")
    parser.add_argument("--repeats", type=int, default=20)
    args = parser.parse_args()
    tokenizers = [MemberTokenizer(AutoTokenizer.from_pretrained(name), name) for name in args.tokenizers]
    union = UnionVocabulary(tokenizers)
    began = time.perf_counter()
    compiler = Compiler(union)
    compiler.start(Grammar.choices(["yes"]))
    console = Console(width=110)
    console.print(f"union of {len(union):,} tokens; the first grammar took {time.perf_counter() - began:.2f} s")
    table = Table("grammar", "ms/step, median", "mean", "largest")
    for name, (grammar, text) in CASES.items():
        walk(compiler.start(grammar), union, text.encode())
        times = [t for _ in range(args.repeats) for t in walk(compiler.start(grammar), union, text.encode())]
        table.add_row(name, *(f"{v:.2f}" for v in (statistics.median(times), statistics.fmean(times), max(times))))
    console.print(table)
    table = Table("JSON of the embedded members", "tokens", "forced", "forwards per token and member")
    with Ensemble.load([MODELS / name for name in ("ash", "birch", "cedar")], drafts=()) as ensemble:
        for seed in range(4):
            output = ensemble.generate(
                "The bridge", max_tokens=200, temperature=1.0, seed=seed, grammar=Grammar.json_schema(PERSON)
            )
            forwards = [member.forwards for member in output.stats.members.values()]
            tokens = len(output.tokens)
            table.add_row(
                output.text, str(tokens), str(output.stats.forced), f"{statistics.fmean(forwards) / tokens:.2f}"
            )
    console.print(table)


if __name__ == "__main__":
    main()
