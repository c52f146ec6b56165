"""Milliseconds per token of an ensemble of two large random models, next to the time to read their weights once.

Run by ``python -m benchmarks.gpu TOKENIZER TOKENIZER`` (folders or hub names) on a machine with a CUDA device. The
models are created on the device from a config; one greedy request runs without drafts. ``--device cpu --shapes tiny``
only checks that the script runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gac_core import Ensemble, EnsembleConfig, MemberConfig
from gac_core.model.member import Member

# Hidden size, intermediate size, layers, attention heads, key-value heads, minimum vocabulary size.
SHAPES = {
    "tiny": ((64, 128, 2, 4, 2), (512, 512)),
    "1b": ((2048, 8192, 16, 32, 8), (128_256, 32_000)),
    "8b": ((4096, 14_336, 32, 32, 8), (128_256,)),
    "7b": ((4096, 11_008, 32, 32, 32), (32_000,)),
}
PAIRS = {"tiny": ("tiny", "tiny"), "1b": ("1b", "1b"), "8b+7b": ("8b", "7b")}
PROMPT = "The text goes on from here as it does in the document that everybody has read before:\n"


def make(name: str, index: int, tokenizer: Any, device: torch.device) -> LlamaForCausalLM:
    """Returns a random model in bf16 on the device that never generates an end of text."""
    (width, inner, layers, heads, kv_heads), rows = SHAPES[name]
    config = LlamaConfig(
        vocab_size=max(len(tokenizer), rows[min(index, len(rows) - 1)]),
        hidden_size=width,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=4096,
        eos_token_id=None,
        bos_token_id=None,
        dtype="bfloat16",
    )
    torch.manual_seed(index)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device:
            return LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def seconds(work: Callable[[], object], device: torch.device, repeats: int) -> float:
    """Returns the median seconds of a function, including the kernels it launched, after one warm-up run."""
    times = []
    for _ in range(repeats + 1):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[1:])


def bandwidth(device: torch.device) -> float:
    """Returns the bytes per second that a copy reads and writes."""
    source = torch.zeros(2**31 if device.type == "cuda" else 2**26, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / seconds(lambda: target.copy_(source), device, 5)


def read_bytes(model: LlamaForCausalLM) -> int:
    """Returns the bytes of weights that one step reads: all but the input embeddings."""
    table = model.get_input_embeddings().weight
    return sum(weight.nbytes for weight in model.parameters()) - table.nbytes


def own(model: LlamaForCausalLM, tokenizer: Any, tokens: int) -> Callable[[], object]:
    """Runs the model's own greedy ``generate``."""
    ids = tokenizer(PROMPT, return_tensors="pt").input_ids.to(model.device)
    asked = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}
    return lambda: model.generate(ids, attention_mask=torch.ones_like(ids), **asked)


def measure(pair: str, tokenizers: list[Any], device: torch.device, args: argparse.Namespace) -> list[str]:
    """Returns one row of the table."""
    models = [
        make(name, index, tokenizer, device)
        for index, (name, tokenizer) in enumerate(zip(PAIRS[pair], tokenizers, strict=True))
    ]
    alone = [
        seconds(own(model, tokenizer, args.tokens), device, args.repeats) / args.tokens
        for model, tokenizer in zip(models, tokenizers, strict=True)
    ]
    bound = sum(read_bytes(model) for model in models) / bandwidth(device)
    members = [
        Member.from_model(model, tokenizer, f"m{index}", compile=args.compile)
        for index, (model, tokenizer) in enumerate(zip(models, tokenizers, strict=True))
    ]
    config = EnsembleConfig(tuple(MemberConfig(member.name) for member in members), drafts=())
    with Ensemble(members, config) as ensemble:
        counts: list[int] = []

        def work() -> None:
            counts.append(ensemble.generate(PROMPT, max_tokens=args.tokens).usage.completion_tokens)

        # The same prompt every time, so that every shape is compiled during the warm-up.
        took = seconds(work, device, args.repeats) / args.tokens
        assert set(counts) == {args.tokens}, counts
    figures = [took, bound, *alone, sum(alone)]
    return [pair, *(f"{1000 * figure:.2f}" for figure in figures), f"{took / bound:.2f}", f"{took / sum(alone):.2f}"]


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", nargs=2)
    parser.add_argument("--shapes", nargs="+", choices=sorted(PAIRS), default=["1b", "8b+7b"])
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--compile", action="store_true")
    args = parser.parse_args()
    device = torch.device(args.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("no CUDA device found; use a machine with one, or python -m benchmarks.speed on a CPU")
    tokenizers = [AutoTokenizer.from_pretrained(name) for name in args.tokenizers]
    names = ("ms per token: both as one", "weights read once", "generate, first", "generate, second", "their sum")
    table = Table("models", *names, "as one / read once", "as one / sum", title="compiled" if args.compile else "eager")
    for pair in args.shapes:
        table.add_row(*measure(pair, tokenizers, device, args))
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
