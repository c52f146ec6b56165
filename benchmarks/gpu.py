"""Milliseconds per token on a GPU, beside the floor that memory bandwidth sets: all weights read once a step.

Run by ``python -m benchmarks.gpu TOKENIZER TOKENIZER`` (folders or hub names) where a CUDA device is. Models have
random weights in bfloat16, made on the device. ``--device cpu --shapes tiny`` tries the script itself without a GPU.
"""

from __future__ import annotations

import argparse
import statistics
import time
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

from gac_core import Ensemble, EnsembleConfig, MemberConfig
from gac_core.member import Member
from gac_core.tokenizer import MemberTokenizer

# hidden size, size of the feed-forward, layers, heads, heads of keys and values
SHAPES = {
    "tiny": [(128, 256, 2, 4, 2), (128, 256, 2, 4, 2)],
    "1B": [(2048, 8192, 16, 32, 8), (2048, 8192, 16, 32, 8)],
    "8B+7B": [(4096, 14336, 32, 32, 8), (4096, 11008, 32, 32, 32)],
}
PROMPT = "The text goes on from here as it does in the document that everybody has read before:\n"


def make(shape: tuple[int, int, int, int, int], name: str, device: str) -> tuple[LlamaForCausalLM, object]:
    """A random model of a shape for a tokenizer, which never ends a text."""
    tokenizer = AutoTokenizer.from_pretrained(name)
    hidden, inner, layers, heads, kv_heads = shape
    config = LlamaConfig(
        vocab_size=MemberTokenizer(tokenizer, name).rows,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=8192,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
    )
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    try:
        with torch.device(device):
            model = LlamaForCausalLM(config).eval()
    finally:
        torch.set_default_dtype(before)
    with torch.no_grad():
        model.lm_head.weight[tokenizer.eos_token_id] = 0
        # Sharp enough that the most probable token has a positive logit, which the end of text then never beats.
        model.lm_head.weight *= 10
    return model, tokenizer


def bandwidth(device: str) -> float:
    """Bytes per second that a copy reads and writes on the device."""
    source = torch.empty(2**28 if device == "cuda" else 2**22, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    rates = []
    for _ in range(10):
        wait(device)
        began = time.perf_counter()
        target.copy_(source)
        wait(device)
        rates.append(2 * source.nbytes / (time.perf_counter() - began))
    return max(rates)


def wait(device: str) -> None:
    """Waits for the device."""
    if device == "cuda":
        torch.cuda.synchronize()


def own(model: LlamaForCausalLM, tokenizer: object, tokens: int) -> float:
    """Milliseconds per token of the model's own generate."""
    ids = torch.tensor([MemberTokenizer(tokenizer, "own").encode_prompt(PROMPT)], device=model.device)
    times: list[float] = []
    hook = model.register_forward_hook(lambda *_: times.append(time.perf_counter()))
    model.generate(
        ids, attention_mask=torch.ones_like(ids), max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False
    )
    hook.remove()
    return gaps(times)


def gaps(times: list[float]) -> float:
    """Median milliseconds between times, the first ones left out."""
    return statistics.median(1000 * (after - before) for before, after in pairwise(times[4:]))


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", nargs=2)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shapes", nargs="+", choices=list(SHAPES), default=["1B", "8B+7B"])
    parser.add_argument("--tokens", type=int, default=128)
    args = parser.parse_args()
    if args.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("there is no CUDA device here; --device cpu --shapes tiny tries the script itself")
    card = torch.cuda.get_device_name() if args.device == "cuda" else "CPU"
    rate = bandwidth(args.device)
    table = Table("models", "own generate, ms", "engine, ms/token", "floor, ms", "engine / floor (target 1.25)")
    for name in args.shapes:
        pairs = [
            make(shape, tokenizer, args.device) for shape, tokenizer in zip(SHAPES[name], args.tokenizers, strict=True)
        ]
        alone = [own(model, tokenizer, args.tokens) for model, tokenizer in pairs]
        members = [Member.from_model(model, tokenizer, f"m{i}") for i, (model, tokenizer) in enumerate(pairs)]
        # The embeddings are looked up, not read.
        weights = sum(model.num_parameters() - model.model.embed_tokens.weight.numel() for model, _ in pairs) * 2
        config = EnsembleConfig(tuple(MemberConfig(member.name) for member in members), drafts=())
        with Ensemble(members, config) as both:
            steps = []
            for _ in range(3):
                steps.append(gaps([time.perf_counter() for _ in both.stream(PROMPT, max_tokens=args.tokens)]))
        floor, step = 1000 * weights / rate, statistics.median(steps[1:])
        table.add_row(
            name, " + ".join(f"{ms:.2f}" for ms in alone), f"{step:.2f}", f"{floor:.2f}", f"{step / floor:.2f}"
        )
        del members, pairs
    Console(width=110).print(f"{card}, bfloat16, {rate / 1e9:.0f} GB/s by copying", table, sep="\n")


if __name__ == "__main__":
    main()
