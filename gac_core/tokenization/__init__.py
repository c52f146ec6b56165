"""Tokenizers, the union of their vocabularies, and text as bytes."""
