"""Tables of tokenizers, in a module that processes of their own import quickly."""

from __future__ import annotations

from transformers import AutoTokenizer

from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary


def build(folders):
    tokenizers = [MemberTokenizer(AutoTokenizer.from_pretrained(folder), folder) for folder in folders]
    union = UnionVocabulary(tokenizers)
    return [t.token_bytes for t in tokenizers], union.tokens, [union.table(t).columns.tolist() for t in tokenizers]
