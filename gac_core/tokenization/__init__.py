"""Tokenizers, the union of their vocabularies, and incremental decoding of text."""
