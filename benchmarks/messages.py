"""Sizes of the messages between decoding and a member's actor, encoded as `RayExecutor` sends them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from gac_core.executor.messages import TOP_K, Answer, Ask, Fetch, TopDistributions
from gac_core.executor.ray.wire import (
    AnswerMessage,
    AskMessage,
    FetchMessage,
    FetchReply,
    ForwardMessage,
    ForwardReply,
    encode,
)
from gac_core.model.chunk import Chunk
from gac_core.model.costs import TimesSnapshot
from gac_core.model.entries import DocumentCache
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import Alignment, UnionVocabulary

PROSE = Path(__file__).parent / "texts" / "prose.txt"
# An actor returns its measured times with each reply: medians for some sizes of forwards.
TIMES = TimesSnapshot(100.0, dict.fromkeys(range(1, 9), 0.01), (1e-4, 1e-4, 1e-4))


class Messages:
    """Measures the messages of requests whose text is prose.

    Args:
        union: The union vocabulary.
        tokenizer: The tokenizer of the member.

    Attributes:
        row_bytes: Bytes of one distribution over the union, in float32.
    """

    def __init__(self, union: UnionVocabulary, tokenizer: MemberTokenizer) -> None:
        ids = tokenizer.encode_bytes(PROSE.read_bytes())
        self._text = ids * (1 + 4096 // len(ids))
        self._alignment = Alignment(union, tokenizer)
        self._union = len(union)
        self.row_bytes = 4 * self._union

    def ask(self, tokens: int = 1, positions: int = 1, masked: bool = False, requests: int = 1) -> int:
        """Returns the bytes of the call for one step.

        Args:
            tokens: New ids of each request, after a text of 2,000.
            positions: At how many of their ends distributions are wanted.
            masked: Whether a grammar's mask is sent for each.
            requests: How many requests are in the batch.
        """
        mask = self._random(positions) > 0.5 if masked else None
        ends = tuple(range(2001 + tokens - positions, 2001 + tokens))
        asks = []
        for number in range(requests):
            chunk = Chunk(f"{number:032}", 2000, tuple(self._text[2000 + number :][:tokens]), positions)
            asks.append(AskMessage.of(Ask(chunk, ends, self._alignment, "top", fetch_from=2000), mask))
        return len(encode(ForwardMessage(asks, None, (), ())))

    def top(self, positions: int = 1, requests: int = 1) -> int:
        """Returns the bytes of the most probable tokens at some positions."""
        probs, ids = self._random(positions).topk(TOP_K)
        return self._reply(
            [TopDistributions(ids, probs, torch.ones(positions), probs[:, -1].clone()) for _ in range(requests)]
        )

    def full(self, requests: int = 1) -> int:
        """Returns the bytes of the distributions over the union at one position of some requests."""
        return self._reply([self._random(1) for _ in range(requests)])

    def fetch(self, tokens: int = 2 * TOP_K) -> int:
        """Returns the bytes of a call that fetches the probabilities of some tokens."""
        return len(encode([FetchMessage.of(Fetch("0" * 32, 2001, torch.arange(tokens)))]))

    def fetched(self, tokens: int = 2 * TOP_K) -> int:
        """Returns the bytes of its reply."""
        return len(encode(FetchReply.of([self._random(1)[0, :tokens].clone()], "")))

    def _reply(self, results: Sequence[Tensor | TopDistributions]) -> int:
        answers = [AnswerMessage.of(Answer(result, 0.01, 1, 1), None, "") for result in results]
        return len(encode(ForwardReply(answers, TIMES, cache_bytes=2**30, document_cache=DocumentCache())))

    def _random(self, positions: int) -> Tensor:
        """Returns distributions, float32, shape ``[positions, union]``."""
        generator = torch.Generator().manual_seed(0)
        return torch.softmax(torch.randn(positions, self._union, generator=generator), -1)
