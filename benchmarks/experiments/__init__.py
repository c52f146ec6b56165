"""The experiments of docs/experiments.md; each module is one command that prints its table and writes its plot."""
