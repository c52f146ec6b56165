"""Tokenizers of folders, loaded once per process: the real ones take seconds, and up to 140 MB each."""

from __future__ import annotations

import functools

from transformers import AutoTokenizer

from gac_core.tokenization.tokenizer import MemberTokenizer


@functools.cache
def member_tokenizer(folder: str) -> MemberTokenizer:
    """A folder's tokenizer; not to be changed."""
    return MemberTokenizer(AutoTokenizer.from_pretrained(folder), folder)
