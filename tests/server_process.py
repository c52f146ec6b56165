"""``gac serve`` in processes of their own, forked from one that has imported everything, which saves seconds each."""

from __future__ import annotations

import json
import multiprocessing
import os
import re
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, Literal

Fault = Literal["none", "hangs while loading", "hangs after 3 forwards"]

_faults = ExitStack()
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["gac_core.cli", "gac_core.server.lifecycle.process"])


def _main(arguments: Sequence[str], folder: str, fault: Fault) -> None:
    """Runs the command in the child process."""
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(Path(folder, name), os.O_WRONLY | os.O_CREAT), number)
    from gac_core.cli import app

    if fault != "none":
        _break(fault)
    sys.argv = ["gac", "serve", *arguments]
    app()


def _break(fault: Fault) -> None:
    from holding import held

    from gac_core import Ensemble
    from gac_core.server.lifecycle import draining_server

    load = Ensemble.from_config

    def loaded(config: Any) -> Ensemble:
        if fault == "hangs while loading":
            print("loading", file=sys.stderr, flush=True)
            threading.Event().wait()
        ensemble = load(config)
        # As Ray does.
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(number))
        _faults.enter_context(held(ensemble, after=3))
        return ensemble

    Ensemble.from_config = loaded  # type: ignore[method-assign]
    draining_server.STEP_SECONDS = 0.5


class ServerProcess:
    """One process.

    Args:
        process: It.
        folder: Where its output is.
    """

    def __init__(self, process: Any, folder: Path) -> None:
        self._process = process
        self._folder = folder

    def wait_for(self, pattern: str, seconds: float = 60.0) -> str:
        """Waits until stderr has a pattern; returns what its group matches, or all of it."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if found := re.search(pattern, self.stderr):
                return found[found.re.groups]
            assert self._process.exitcode is None, self.stderr
            time.sleep(0.01)
        raise TimeoutError(self.stderr)

    @property
    def url(self) -> str:
        """Its address, once it accepts requests."""
        return self.wait_for(r"(http://127\.0\.0\.1:\d+)/v1")

    @property
    def stderr(self) -> str:
        """What it wrote to stderr."""
        path = self._folder / "stderr"
        return path.read_text() if path.exists() else ""

    @property
    def stdout(self) -> str:
        """What it wrote to stdout."""
        return (self._folder / "stdout").read_text()

    @property
    def log(self) -> list[dict[str, Any]]:
        """Its log."""
        return [json.loads(line) for line in self.stdout.splitlines()]

    def send(self, number: signal.Signals) -> None:
        """Sends a signal."""
        os.kill(self._process.pid, number)

    def status(self, seconds: float) -> int | None:
        """Waits for its end; returns the exit status, or None if it has not ended in time."""
        self._process.join(seconds)
        status: int | None = self._process.exitcode
        return status


@contextmanager
def server_process(folder: Path, *arguments: str, fault: Fault = "none") -> Iterator[ServerProcess]:
    """Runs ``gac serve`` on a free port until the end of the block.

    Args:
        folder: An empty folder for its output.
        *arguments: Of the command.
        fault: What goes wrong in it.
    """
    process = _context.Process(target=_main, args=([*arguments, "--port", "0"], str(folder), fault))
    process.start()
    try:
        yield ServerProcess(process, folder)
    finally:
        process.kill()
        process.join()
        process.close()
