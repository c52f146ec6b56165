"""Ideal members: known distributions over words, seen exactly through two different byte-level BPE tokenizers.

A member's next-token distribution is that of the canonical tokenization of its next word, given the ids it holds. No
model, no rounding: whatever an ensemble of such members gets wrong is the fault of the vote. Used as an executor, so
that the real poll, decoders and engine run on it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from gac_core.member import Chunk, ChunkResult


def train_tokenizer(texts: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with one control token, ``<end>``."""
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(vocab_size=size, initial_alphabet=alphabet, special_tokens=["<end>"], show_progress=False),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, eos_token="<end>")


class IdealMember:
    """A distribution over words (each with its leading space) through a tokenizer; after a word comes the end.

    Args:
        tokenizer: The tokenizer.
        chances: Probability of each word.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, chances: dict[str, float]) -> None:
        self.tokenizer = tokenizer
        self.paths = {
            word: (*tokenizer.encode(word, add_special_tokens=False), tokenizer.eos_token_id) for word in chances
        }
        self.chances = chances

    def logits(self, ids: Sequence[int]) -> torch.Tensor:
        """Exact log-probabilities of the next id after these, shape ``[vocabulary]``; impossible ids far below."""
        out = torch.zeros(len(self.tokenizer), dtype=torch.float64)
        for word, path in self.paths.items():
            if path[: len(ids)] == tuple(ids) and len(path) > len(ids):
                out[path[len(ids)]] += self.chances[word]
        if out.sum() == 0:
            # Text that no word has: nothing but the end follows.
            out[self.tokenizer.eos_token_id] = 1
        return (out / out.sum()).clamp(min=1e-30).log().float()

    def greedy(self) -> str:
        """The word that this member alone would write, its most probable token at each step."""
        ids: list[int] = []
        while True:
            best = int(self.logits(ids).argmax())
            if best == self.tokenizer.eos_token_id:
                return self.tokenizer.decode(ids)
            ids.append(best)


class OracleExecutor:
    """Runs ideal members; the first id of every request is a prompt that they do not look at."""

    def __init__(self, members: Sequence[IdealMember]) -> None:
        self.members = list(members)
        self.texts: dict[tuple[int, str], list[int]] = {}
        self.forwards = 0

    def forward(self, calls):
        """Answers every chunk."""
        return {index: [self._run(index, chunk) for chunk in chunks] for index, chunks in calls.items()}

    def _run(self, index: int, chunk: Chunk) -> ChunkResult:
        self.forwards += 1
        text = self.texts.setdefault((index, chunk.request_id), [])
        del text[chunk.start :]
        text.extend(chunk.token_ids)
        ends = range(len(text) - chunk.num_logits + 1, len(text) + 1)
        return ChunkResult(
            torch.stack([self.members[index].logits(text[1:end]) for end in ends]), 0.0, len(chunk.token_ids)
        )

    def release(self, request_id, clear=False):
        """Forgets a request."""

    def close(self):
        """Nothing to stop."""


def random_chances(words: Sequence[str], rng: random.Random, common: dict[str, float] | None = None):
    """A skewed random distribution over words, most of it shared with ``common`` if given."""
    raw = {word: rng.gammavariate(0.1, 1.0) + 1e-9 for word in words}
    total = sum(raw.values())
    own = {word: value / total for word, value in raw.items()}
    if common is None:
        return own
    return {word: 0.15 * own[word] + 0.85 * common[word] for word in words}
