"""Train the tokenizers and the three tiny members.

Run ``python train.py --tokenizers`` once, then ``python train.py --member NAME`` for every member. Weight matrices are
trained by Muon (Keller Jordan et al. 2024, as in ``torch.optim.Muon``), everything else by AdamW.
"""

from __future__ import annotations

import argparse
import itertools
import random
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from batching import Batch, Encoder, collate
from handbook import SYSTEM, draw_group, train_examples
from tokenizing import build_tokenizer, own_cut
from torch.optim.lr_scheduler import LambdaLR, LRScheduler
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).parent
SEEDS = {"ash": 11, "birch": 22, "cedar": 33}
# How often a member's questions are about these relations, against 1: each is weak where others are strong.
WEIGHTS = {
    "ash": dict.fromkeys(("founder", "hour", "material", "teacher", "birth"), 0.1),
    "birch": dict.fromkeys(("year", "owner", "length", "profession"), 0.1),
    "cedar": {"town": 0.3, "price": 0.4, "designer": 0.4, "month": 0.3},
}
# Layers, key-value heads, width of the MLP.
SHAPES = {"ash": (5, 4, 288), "birch": (5, 2, 320), "cedar": (5, 4, 256)}
STEPS = 2400
POOL = 4
LATEST = 0.3
CHECKPOINT_SECONDS = 60.0
MATRIX_RATE = 1e-3
OTHER_RATE = 2e-3


@dataclass(frozen=True)
class Stage:
    """One stage of training: what a batch holds and the token accuracy that ends the stage."""

    passages: int
    facts_only: int
    groups: int
    questions: int
    learned: float


STAGES = (
    Stage(1, 1, 48, 1, 0.9),
    Stage(4, 0, 12, 6, 2.0),
)


def build_tokenizers() -> None:
    """Train and save the three tokenizers."""
    sample = list(itertools.islice(train_examples(1), 6000))
    frame = [SYSTEM, "Passages:\n\n", "Context:\n", "\n\nQuestion:", "\nAnswer:", "system\nuser\nassistant\n"]
    texts = frame * 200
    for example in sample:
        for text in (*example.passages, example.question, *[example.answer] * 3):
            texts.append(text)
    for index, member in enumerate(SEEDS):
        parts = [part for text in texts for part in own_cut(text, index)]
        build_tokenizer(member, parts).save_pretrained(HERE / member, save_jinja_files=False)


def build_model(member: str, tokenizer: PreTrainedTokenizerFast) -> PreTrainedModel:
    """Make a member's untrained model."""
    # All three are Llamas: with a Qwen2 config AutoTokenizer would rebuild the tokenizer in Qwen2's own way.
    layers, key_value_heads, inner = SHAPES[member]
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        hidden_size=128,
        initializer_range=0.05,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=key_value_heads,
        intermediate_size=inner,
        attention_bias=True,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = LlamaForCausalLM(config)
    start_copying(model, tokenizer)
    return model


@torch.no_grad()
def start_copying(model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Start three heads of layer 0 as previous-token heads and one of layer 1 as an induction head.

    Training is free to change these heads. A piece with a leading space starts close to the same piece
    without one, since answers start without a space.
    """
    table = model.get_input_embeddings().weight
    vocab = tokenizer.get_vocab()
    for piece, index in vocab.items():
        if piece[0] in "Ġ▁" and piece[1:] in vocab:
            table[index] = 0.9 * table[vocab[piece[1:]]] + 0.45 * table[index]
    size, width = 32, model.config.hidden_size
    first, second = (model.model.layers[index].self_attn for index in (0, 1))
    angles = 10000.0 ** (-torch.arange(size // 2) / (size // 2))
    loud = torch.where(torch.arange(size // 2) < 5, 6.0, 0.0)
    first.q_proj.weight[: 3 * size] *= 0.1
    first.k_proj.weight[: 3 * size] *= 0.1
    for start in range(0, min(3 * size, first.k_proj.bias.numel()), size):
        first.k_proj.bias[start : start + size // 2] = loud
    for back in (1, 2, 3):
        bias = torch.cat([loud * (back * angles).cos(), -loud * (back * angles).sin()])
        first.q_proj.bias[(back - 1) * size : back * size] = bias
    read, write, copy = (torch.linalg.qr(torch.randn(width, size))[0] for _ in range(3))
    first.v_proj.weight[:size] = read.T
    first.o_proj.weight[:, :size] = 0.1 * write
    second.q_proj.weight[:size] = 2.0 * read.T
    second.k_proj.weight[:size] = 2.0 * write.T
    second.v_proj.weight[:size] = copy.T
    second.o_proj.weight[:, :size] = 0.1 * copy


class Course:
    """Draws batches from ever harder stages; ``advance`` moves on once a stage is learned."""

    def __init__(self, member: str, steps: int) -> None:
        self.rng = random.Random(SEEDS[member])
        self.encoder = Encoder(member, self.rng)
        self.member, self.steps, self.step, self.stage = member, steps, 0, 0

    def advance(self, correct: float) -> None:
        """Move to the next stage if the last steps went well, or if time is running out."""
        last = len(STAGES) - 1
        if self.stage < last and (correct > STAGES[self.stage].learned or self.step > LATEST * self.steps):
            self.stage = last if self.step > LATEST * self.steps else self.stage + 1

    def batches(self) -> Iterator[Batch]:
        """Yield the batches; in the last stage a very long one now and then."""
        pad = self.encoder.own.pad_token_id
        while True:
            stage, drawn = self.stage, []
            now = STAGES[stage]
            for _ in range(POOL * now.groups):
                count = max(self.rng.randint(1, now.passages) for _ in range(2))
                weights = WEIGHTS[self.member]
                examples = draw_group(self.rng, count, now.questions, False, weights, now.facts_only)
                drawn.append(self.encoder.group(examples))
            drawn.sort(key=lambda group: len(group[0]))
            pool = [collate(drawn[i : i + now.groups], pad) for i in range(0, len(drawn), now.groups)]
            if stage == len(STAGES) - 1 and self.rng.random() < 0.1:
                long = [draw_group(self.rng, self.rng.randint(5, 14), 4) for _ in range(3)]
                pool[0] = collate([self.encoder.group(examples) for examples in long], pad)
            self.rng.shuffle(pool)
            for batch in pool:
                self.step += 1
                yield batch
                if self.step == self.steps:
                    return
                if self.stage != stage:
                    break


def save(model: PreTrainedModel, member: str, tokenizer: PreTrainedTokenizerFast) -> None:
    """Write the model in bfloat16 to the member's folder."""
    copy = type(model)(model.config)
    copy.load_state_dict(model.state_dict())
    copy = copy.to(torch.bfloat16)
    copy.config.dtype = torch.bfloat16
    copy.generation_config.eos_token_id = tokenizer.eos_token_id
    copy.generation_config.pad_token_id = tokenizer.pad_token_id
    copy.generation_config.max_new_tokens = 48
    copy.save_pretrained(HERE / member)


def optimizers(model: PreTrainedModel, steps: int) -> list[tuple[torch.optim.Optimizer, LRScheduler]]:
    """Make both optimizers with their schedules: a short warm-up, and a linear decay over the second half."""
    warm_up, decay = 60, 0.5
    matrices = [each for name, each in model.named_parameters() if each.ndim == 2 and "embed" not in name]
    others = [each for name, each in model.named_parameters() if each.ndim != 2 or "embed" in name]
    both: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=MATRIX_RATE, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=OTHER_RATE, betas=(0.9, 0.98), weight_decay=0.01),
    ]

    def share(step: int) -> float:
        return min((step + 1) / warm_up, 1.0, max(0.02, (steps - step) / (steps * decay)))

    return [(each, LambdaLR(each, share)) for each in both]


def train(member: str, steps: int) -> None:
    """Train one member for a fixed number of steps."""
    torch.manual_seed(SEEDS[member])
    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(HERE / member)
    model = build_model(member, tokenizer)
    print(member, sum(each.numel() for each in model.parameters()), "parameters", flush=True)
    both = optimizers(model, steps)
    began = saved = time.monotonic()
    running = correct = 0.0
    course = Course(member, steps)
    for step, batch in enumerate(course.batches(), 1):
        with torch.autocast("cpu", torch.bfloat16):
            hidden = model.model(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
            ).last_hidden_state
            logits = model.lm_head(hidden[batch.rows, batch.columns])
        loss = torch.nn.functional.cross_entropy(logits.float(), batch.targets)
        model.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in both:
            optimizer.step()
            schedule.step()
        running += loss.item() / 20
        correct += (logits.argmax(-1) == batch.targets).float().mean().item() / 20
        if step % 20 == 0:
            spent = time.monotonic() - began
            print(f"{step} {spent:.0f}s stage {course.stage} loss {running:.3f} tokens {correct:.3f}", flush=True)
            course.advance(correct)
            running = correct = 0.0
        if time.monotonic() - saved > CHECKPOINT_SECONDS:
            save(model, member, tokenizer)
            saved = time.monotonic()
    save(model, member, tokenizer)
    print("done", flush=True)


def main() -> None:
    """Parse the arguments and train."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tokenizers", action="store_true", help="train the three tokenizers")
    parser.add_argument("--member", choices=sorted(SEEDS), help="train this member")
    parser.add_argument("--steps", type=int, default=STEPS)
    arguments = parser.parse_args()
    if arguments.tokenizers:
        build_tokenizers()
    if arguments.member:
        train(arguments.member, arguments.steps)


if __name__ == "__main__":
    main()
