"""Grammars, their compilation for the union vocabulary, and the constraint of each request."""
