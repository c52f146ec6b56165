"""Cost of many requests: batches against sequential requests, prefix caching, long texts, memory.

Run by ``python -m benchmarks.serving TOKENIZER TOKENIZER`` (folders or hub names), on random models of realistic size.
Sides of a ratio are run in turn in one process, after a warm-up; a figure is the median of its ratios.
"""

from __future__ import annotations

import argparse
import random
import resource
import statistics
import time
from itertools import pairwise

import torch
from rich.console import Console
from rich.table import Table
from transformers import AutoTokenizer, LlamaForCausalLM

from benchmarks.scripted import shape
from benchmarks.speed import PROSE
from gac_core import Ensemble, EnsembleConfig, MemberConfig
from gac_core.model.member import Member
from gac_core.tokenization.tokenizer import MemberTokenizer

WORDS = PROSE.read_text(encoding="utf-8").split()


def prose(length: int, seed: int) -> str:
    """Returns random words that depend on the seed."""
    rng = random.Random(seed)
    return " ".join(rng.choice(WORDS) for _ in range(length))


def models_of(args: argparse.Namespace, dtype: torch.dtype) -> list[tuple[LlamaForCausalLM, object]]:
    """Returns two random models that never generate an end of text, with their tokenizers."""
    made = []
    for seed, name in enumerate(args.tokenizers):
        hf = AutoTokenizer.from_pretrained(name)
        torch.manual_seed(seed)
        model = LlamaForCausalLM(shape(MemberTokenizer(hf, name), args.width, args.layers)).to(dtype).eval()
        with torch.no_grad():
            model.lm_head.weight[hf.eos_token_id] = 0
            # Scaled so that the largest logit is positive and the end of text never wins.
            model.lm_head.weight *= 10
        made.append((model, hf))
    return made


def ensemble_of(models: list[tuple[LlamaForCausalLM, object]], **settings: object) -> Ensemble:
    """Returns an ensemble of loaded models, without drafts."""
    names = [f"m{index}" for index in range(len(models))]
    members = [Member.from_model(model, hf, name) for (model, hf), name in zip(models, names, strict=True)]
    return Ensemble(members, EnsembleConfig(tuple(MemberConfig(name) for name in names), drafts=(), **settings))


def batches(args: argparse.Namespace, dtype: torch.dtype) -> list[float]:
    """Returns the tokens per second of 16 concurrent requests over those of sequential requests."""
    with ensemble_of(models_of(args, dtype)) as both:
        seeds = iter(range(10**6))
        ratios = []
        for repeat in range(args.repeats + 1):
            rates = []
            for together in (True, False):
                # Fewer sequential requests, since all cost the same; all prompts differ.
                prompts = [prose(32, next(seeds)) for _ in range(16 if together else 3)]
                began = time.perf_counter()
                outputs = (
                    both.generate_batch(prompts, max_tokens=args.tokens)
                    if together
                    else [both.generate(prompt, max_tokens=args.tokens) for prompt in prompts]
                )
                rates.append(sum(len(o.tokens) for o in outputs) / (time.perf_counter() - began))
            if repeat:
                ratios.append(rates[0] / rates[1])
    return ratios


def prefixes(args: argparse.Namespace) -> list[float]:
    """Returns the time to first token with about 1,000 cached prompt tokens, over the time without them."""
    with ensemble_of(models_of(args, torch.float32)) as both:
        ratios = []
        for repeat in range(args.repeats + 1):
            document = prose(1000, 1000 + repeat)
            times = [
                both.generate(f"{document}\n{question}", max_tokens=1).stats.first_token_seconds
                for question in ("Where is the bridge?", "When was the museum built?")
            ]
            if repeat:
                ratios.append(times[1] / times[0])
    return ratios


def long_text(args: argparse.Namespace) -> list[tuple[str, float, float]]:
    """Returns the milliseconds per token after short and long texts, of the engine and of ``generate``, run in turn."""
    models = models_of(args, torch.float32)
    text = prose(2 * args.long, 77)
    found: dict[str, list[list[float]]] = {}
    with ensemble_of(models[:1]) as one, ensemble_of(models) as both:
        for _ in range(args.repeats):
            for place, length in enumerate((64, args.long)):
                ids = models[0][1](text).input_ids[:length]
                prompt = models[0][1].decode(ids, skip_special_tokens=True)
                runs = {
                    "engine, one member": lambda prompt=prompt: engine_gaps(one, prompt),
                    "its own generate": lambda ids=ids: own_gaps(models[0][0], ids),
                    "engine, two members": lambda prompt=prompt: engine_gaps(both, prompt),
                }
                for name, run in runs.items():
                    found.setdefault(name, [[], []])[place].append(statistics.median(run()))
    return [(name, statistics.median(short), statistics.median(long)) for name, (short, long) in found.items()]


def engine_gaps(ensemble: Ensemble, prompt: str) -> list[float]:
    """Returns the milliseconds between the tokens of a short answer."""
    times = [time.perf_counter() for _ in ensemble.stream(prompt, max_tokens=32)]
    return [1000 * (after - before) for before, after in pairwise(times[1:])]


def own_gaps(model: LlamaForCausalLM, ids: list[int]) -> list[float]:
    """Returns the milliseconds between the tokens of the model's own ``generate``."""
    times: list[float] = []
    hook = model.register_forward_hook(lambda *_: times.append(time.perf_counter()))
    prompt = torch.tensor([ids])
    model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=32, min_new_tokens=32)
    hook.remove()
    return [1000 * (after - before) for before, after in pairwise(times[1:])]


def memory(args: argparse.Namespace) -> tuple[float, float, float]:
    """Returns MiB of the caches by formula and allocated, and MiB added by the second half of many short requests."""
    small = argparse.Namespace(**{**vars(args), "width": 128, "layers": 2})
    with ensemble_of(models_of(small, torch.float32), cache_gib=0.03125) as both:
        peaks = []
        for index in range(args.requests):
            both.generate(prose(20 + index % 30, 5000 + index), max_tokens=4)
            peaks.append(resident())
        caches = [member._runner._cache for member in both._members]
        slots = [cache._slot_layers[0].num_slots * cache._slot_layers[0].capacity for cache in caches]
        formula = sum(n * 2 * 2 * 1 * 64 * 4 for n in slots) / 2**20
        return formula, sum(cache.nbytes for cache in caches) / 2**20, peaks[-1] - peaks[len(peaks) // 2]


def resident() -> float:
    """Returns the resident memory of this process, in MiB."""
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    """Prints the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tokenizers", nargs=2)
    parser.add_argument("--width", type=int, default=512)
    parser.add_argument("--layers", type=int, default=8)
    parser.add_argument("--tokens", type=int, default=48)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--long", type=int, default=4000, help="tokens of a long text; 0 skips it")
    parser.add_argument("--requests", type=int, default=1000, help="requests of the memory run; 0 skips it")
    args = parser.parse_args()
    console = Console(width=110)
    table = Table("case", "target", "ratio, median", "smallest", "largest")
    for name, target, ratios in (
        ("16 requests at once, tokens per second, bfloat16", "6.00", batches(args, torch.bfloat16)),
        ("16 requests at once, tokens per second, float32", "", batches(args, torch.float32)),
        ("first token, 1,000 tokens cached", "0.10", prefixes(args)),
    ):
        table.add_row(
            name, target, *(f"{value:.2f}" for value in (statistics.median(ratios), min(ratios), max(ratios)))
        )
    console.print(table)
    if args.long:
        table = Table("cost of a token", "ms after 64 tokens", f"ms after {args.long}")
        for name, first, last in long_text(args):
            table.add_row(name, f"{first:.2f}", f"{last:.2f}")
        console.print(table)
    if args.requests:
        formula, fact, growth = memory(args)
        console.print(
            f"caches: {formula:.1f} MiB by the formula, {fact:.1f} MiB in fact; "
            f"the second half of {args.requests} requests added {growth:.1f} MiB to the process"
        )


if __name__ == "__main__":
    main()
