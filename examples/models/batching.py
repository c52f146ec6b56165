"""From examples to training batches."""

from __future__ import annotations

import random
from dataclasses import dataclass
from pathlib import Path

import torch
from handbook import Example, render_messages
from transformers import AutoTokenizer

HERE = Path(__file__).parent
MEMBERS = ("ash", "birch", "cedar")
FOREIGN_RATE = 0.15

# The shared passages, then (question, answer) of every example over them.
Group = tuple[list[int], list[tuple[list[int], list[int]]]]


@dataclass
class Batch:
    """One training step: token ids, positions, attention mask and where the targets are."""

    ids: torch.Tensor
    positions: torch.Tensor
    mask: torch.Tensor
    rows: torch.Tensor
    columns: torch.Tensor
    targets: torch.Tensor


class Encoder:
    """Turns groups of examples into token ids for one member."""

    def __init__(self, member: str, rng: random.Random) -> None:
        self.own = AutoTokenizer.from_pretrained(HERE / member)
        self.others = [AutoTokenizer.from_pretrained(HERE / other) for other in MEMBERS if other != member]
        self.rng = rng
        self.pieces: dict[tuple[int, int], list[int]] = {}
        self.frames: dict[str, tuple[str, str]] = {}

    def _encode(self, text: str) -> list[int]:
        return self.own.encode(text, add_special_tokens=False)

    def _frame(self, layout: str) -> tuple[str, str]:
        """The rendered text before the passages and after the question."""
        if layout not in self.frames:
            messages = render_messages(Example(("\x01",), "\x02", "", ""), layout)
            text = self.own.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
            self.frames[layout] = (text[: text.index("\x01")], text[text.index("\x02") + 1 :])
        return self.frames[layout]

    def answer(self, text: str) -> list[int]:
        """Encode an answer, at times as the pieces of another member's tokenizer."""
        if self.rng.random() >= FOREIGN_RATE:
            return [*self._encode(text), self.own.eos_token_id]
        which = self.rng.randrange(len(self.others))
        ids: list[int] = []
        for piece in self.others[which].encode(text, add_special_tokens=False):
            if (which, piece) not in self.pieces:
                self.pieces[which, piece] = self._encode(self.others[which].decode([piece]))
            ids += self.pieces[which, piece]
        return [*ids, self.own.eos_token_id]

    def group(self, examples: list[Example]) -> Group:
        """Encode examples over the same passages: the shared prefix, then (question, answer) each."""
        layout = "main" if self.rng.random() < 0.8 else "context"
        head, tail = self._frame(layout)
        prefix = self._encode(head + ("\n\n" if layout == "main" else "\n").join(examples[0].passages))
        parts = []
        for example in examples:
            question = self._encode(f"\n\nQuestion: {example.question}{tail}")
            parts.append((question, self.answer(example.answer)))
        return prefix, parts


def collate(groups: list[Group], pad: int) -> Batch:
    """Lay out groups as rows in which each question sees the passages and itself only."""
    lengths = [len(prefix) + sum(len(q) + len(a) for q, a in parts) for prefix, parts in groups]
    width = -(-max(lengths) // 16) * 16
    ids = torch.full((len(groups), width), pad)
    positions = torch.zeros(len(groups), width, dtype=torch.long)
    segments = torch.full((len(groups), width), -1)
    rows, columns, targets = [], [], []
    for row, (prefix, parts) in enumerate(groups):
        start = len(prefix)
        ids[row, :start] = torch.tensor(prefix)
        positions[row, :start] = torch.arange(start)
        segments[row, :start] = 0
        for number, (question, answer) in enumerate(parts, 1):
            end = start + len(question) + len(answer)
            ids[row, start:end] = torch.tensor(question + answer)
            positions[row, start:end] = torch.arange(len(prefix), len(prefix) + end - start)
            segments[row, start:end] = number
            first = start + len(question) - 1
            rows += [row] * len(answer)
            columns += range(first, first + len(answer))
            targets += answer
            start = end
    query, key = segments[:, :, None], segments[:, None, :]
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    mask = (causal & ((key == query) | (key == 0)))[:, None]
    return Batch(ids, positions, mask, torch.tensor(rows), torch.tensor(columns), torch.tensor(targets))
