"""Grammars: constraints on what an answer may be."""
