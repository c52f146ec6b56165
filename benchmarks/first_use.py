"""Seconds until the library can be used: imports and ``--help``, each in a fresh interpreter.

    python -m benchmarks.first_use [--repeat 5] [--other CHECKOUT]

Rows are measured in turn, round by round, so that the load of the machine affects all of them alike. Processor seconds
hardly depend on it. Import times include what the framework itself takes, which has a row of its own. With another
checkout, such as an older one, its rows are measured beside those of this one.
"""

from __future__ import annotations

import argparse
import os
import resource
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from statistics import median

OTHERS = {
    "python": "pass",
    "import torch": "import torch",
    "import langchain_core (models, tools)": "import langchain_core.language_models, langchain_core.tools",
    "import llama_index.core": "import llama_index.core",
}
OURS = {
    "import gac_core": "import gac_core",
    "import gac_langchain": "import gac_langchain",
    "import gac_llamaindex": "import gac_llamaindex",
    "gac --help": "import sys; sys.argv = ['gac', '--help']; from gac_core.cli import app; app()",
    "gac serve --help": "import sys; sys.argv = ['gac', 'serve', '--help']; from gac_core.cli import app; app()",
    "import gac_core and the engine": "import gac_core, gac_core.engine.frontend",
}


@dataclass(frozen=True)
class Row:
    """What is measured: code, run with the packages of a checkout."""

    name: str
    code: str
    checkout: Path

    def measure(self) -> tuple[float, float]:
        """Returns the elapsed and the processor seconds of a fresh interpreter that runs the code."""
        variables = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(self.checkout)}
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.perf_counter()
        subprocess.run(
            [sys.executable, "-c", self.code], check=True, stdout=subprocess.DEVNULL, env=variables, cwd=self.checkout
        )
        elapsed = time.perf_counter() - began
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return elapsed, after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime


def main() -> None:
    """Prints the medians and the smallest values."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=5, help="rounds (5)")
    parser.add_argument("--other", type=Path, help="another checkout to compare with")
    arguments = parser.parse_args()
    here = Path(__file__).parent.parent
    rows = [Row(name, code, here) for name, code in {**OTHERS, **OURS}.items()]
    if arguments.other is not None:
        rows += [Row(f"{name}, other", code, arguments.other.resolve()) for name, code in OURS.items()]
    found: dict[Row, list[tuple[float, float]]] = {row: [] for row in rows}
    for row in rows:  # fills the page cache and writes bytecode
        row.measure()
    for _ in range(arguments.repeat):
        for row in rows:
            found[row].append(row.measure())
    print(f"{'':42}{'median s':>10}{'least s':>10}{'processor s':>13}")
    for row, runs in found.items():
        elapsed, processor = zip(*runs, strict=True)
        print(f"{row.name:42}{median(elapsed):10.2f}{min(elapsed):10.2f}{median(processor):13.2f}")


if __name__ == "__main__":
    main()
