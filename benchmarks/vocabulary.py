"""Sizes and times of a union vocabulary: building it cold and cached, and one step of align, combine and select.

Run by ``python -m benchmarks.vocabulary MODEL MODEL ...`` (folders or hub names; only tokenizers are read).
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer

from gac_core.combination import arithmetic_mean
from gac_core.decoding.commit import make_commit
from gac_core.decoding.tokenized_text import TokenizedText
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import Alignment, UnionVocabulary


def build(loaded: list[Any], rows: list[int]) -> tuple[float, list[MemberTokenizer], UnionVocabulary, list[Alignment]]:
    """Returns the seconds from loaded tokenizers to alignments, and the objects built."""
    began = time.perf_counter()
    members = [
        MemberTokenizer(tokenizer, str(i), rows=n) for i, (tokenizer, n) in enumerate(zip(loaded, rows, strict=True))
    ]
    union = UnionVocabulary(members)
    alignments = [Alignment(union, member) for member in members]
    return time.perf_counter() - began, members, union, alignments


def step_times(alignments: list[Alignment], rows: list[int], repeats: int) -> list[float]:
    """Returns the seconds of steps on random logits: align, combine, select."""
    logits = [torch.randn(1, n) for n in rows]
    weights = [1 / len(rows)] * len(rows)
    times = []
    with torch.inference_mode():
        for _ in range(repeats + 5):
            began = time.perf_counter()
            aligned = [alignment.align(row) for alignment, row in zip(alignments, logits, strict=True)]
            int(arithmetic_mean(aligned, weights)[0].argmax())
            times.append(time.perf_counter() - began)
    return times[5:]


def commit_times(members: list[MemberTokenizer], rule: str, text: str) -> list[float]:
    """Returns the seconds of committing each member's tokens to the next member."""
    times = []
    for index, member in enumerate(members):
        giver = members[index - 1]
        commit, sequence = make_commit(rule, member), TokenizedText([])
        for data in filter(None, (giver.token_bytes[i] for i in giver.hf.encode(text, add_special_tokens=False))):
            began = time.perf_counter()
            commit(sequence, data, False)
            times.append(time.perf_counter() - began)
    return times


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="+")
    parser.add_argument(
        "--rows", type=int, nargs="*", help="rows of each output head; default: the lengths of the tokenizers"
    )
    parser.add_argument("--repeats", type=int, default=100)
    args = parser.parse_args()
    loaded = [AutoTokenizer.from_pretrained(model) for model in args.models]
    rows = args.rows or [len(tokenizer) for tokenizer in loaded]
    with tempfile.TemporaryDirectory() as folder:
        os.environ["GAC_CACHE_DIR"] = folder
        cold, members, union, alignments = build(loaded, rows)
        warm = min(build(loaded, rows)[0] for _ in range(3))
    held = [{data for data in member.token_bytes if data is not None} for member in members]
    steps = step_times(alignments, rows, args.repeats)
    table = Table("what", "value")
    table.add_row("union, with the end of text", f"{len(union):,}")
    table.add_row("held by all members", f"{len(set.intersection(*held)):,}")
    table.add_row("build, cold", f"{cold:.2f} s")
    table.add_row("build, cached (best of 3)", f"{warm:.2f} s")
    table.add_row("align + combine + pick, median", f"{1e3 * statistics.median(steps):.2f} ms a row")
    text = " ".join(line.strip() for line in (__doc__ or "").splitlines()) * 5
    for rule in ("context-free", "canonical"):
        median = statistics.median(commit_times(members, rule, text))
        table.add_row(f"{rule} commit, median", f"{1e6 * median:.0f} us")
    Console().print(table)


if __name__ == "__main__":
    main()
