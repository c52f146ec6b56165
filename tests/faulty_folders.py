"""Model folders whose models fail on command, in whichever process they are loaded."""

from __future__ import annotations

import itertools
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_numbers = itertools.count()
CODE = Path(__file__).with_name("modeling_faulty.py")


@dataclass(frozen=True)
class FaultyFolder:
    """A folder of a model whose forwards fail on command.

    Attributes:
        path: The folder of the model.
        orders: The folder in which faults are ordered.
    """

    path: Path
    orders: Path

    def order(self, fault: str, phase: str, skip: int = 0) -> None:
        """Makes a forward fail.

        Args:
            fault: ``"kill"``, ``"stop"`` (SIGSTOP), ``"sleep"``, ``"memory"`` or ``"nan"``.
            phase: ``"prefill"``, ``"decode"``, ``"verify"`` (2 to 8 tokens) or ``"any"``.
            skip: How many forwards of this phase go well before. Default 0.
        """
        order = {"fault": fault, "phase": phase, "skip": skip, "number": next(_numbers)}
        (self.orders / "taken.json").unlink(missing_ok=True)
        (self.orders / "new.json").write_text(json.dumps(order))
        (self.orders / "new.json").rename(self.orders / "fault.json")

    def withdraw(self) -> bool:
        """Removes an order; returns whether it had been carried out."""
        (self.orders / "fault.json").unlink(missing_ok=True)
        return (self.orders / "taken.json").exists()

    def pids(self) -> list[int]:
        """The processes that have loaded the model so far, the latest last."""
        file = self.orders / "pids"
        return [int(line) for line in file.read_text().split()] if file.exists() else []

    def alive(self) -> list[int]:
        """Those of the processes that still run."""
        return [pid for pid in dict.fromkeys(self.pids()) if running(pid)]


def running(pid: int) -> bool:
    """Whether a process exists and is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def faulty_folder(model: Any, tokenizer: Any, path: Path) -> FaultyFolder:
    """Saves a Llama and its tokenizer in a new folder."""
    orders = path.with_name(f"{path.name}-orders")
    orders.mkdir(parents=True)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    shutil.copy(CODE, path)
    config = json.loads((path / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "modeling_faulty.FaultyLlamaForCausalLM"}
    config["fault_folder"] = str(orders)
    (path / "config.json").write_text(json.dumps(config))
    return FaultyFolder(path, orders)
