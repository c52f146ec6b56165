"""Benchmarks; each module prints its results."""
