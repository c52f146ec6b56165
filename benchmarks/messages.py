"""Sizes of the messages between decoding and a member in another process, pickled as the Ray executor sends them."""

from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gac_core.executor.messages import TOP_K, Answer, Ask, Fetch, TopDistributions
from gac_core.model.chunk import Chunk
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary

PROSE = Path(__file__).parent / "texts" / "prose.txt"
REQUEST_ID = "0123456789abcdef"


class Messages:
    """Measures messages about a text of real prose.

    Args:
        union: The union vocabulary.
        tokenizer: The tokenizer of the member.

    Attributes:
        row_bytes: Bytes of one distribution over the union, in float32.
    """

    def __init__(self, union: UnionVocabulary, tokenizer: MemberTokenizer) -> None:
        ids = tokenizer.encode_bytes(PROSE.read_bytes())
        self._ids = tuple(ids * (1 + 4000 // len(ids)))
        self._union = len(union)
        self.row_bytes = 4 * self._union
        self._random = torch.Generator().manual_seed(0)

    def ask(self, tokens: int = 1, ends: int = 1, masked: bool = False, requests: int = 1) -> int:
        """Returns the bytes of one call: for each request new ids, the ends among them, and a grammar's masks."""
        return 0
