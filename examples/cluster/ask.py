"""Answers a question with the ensemble of ``ensemble.yaml``; run it on a node of the cluster."""

from __future__ import annotations

import argparse
from pathlib import Path

from gac_core import Ensemble


def main() -> None:
    """Prints the answer as it is generated."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("question")
    parser.add_argument("--config", default=Path(__file__).with_name("ensemble.yaml"))
    parser.add_argument("--max-tokens", type=int, default=256)
    args = parser.parse_args()
    with Ensemble.from_config(args.config) as ensemble:
        question = [{"role": "user", "content": args.question}]
        for chunk in ensemble.stream(question, max_tokens=args.max_tokens):
            print(chunk.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
