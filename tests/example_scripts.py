"""Runs scripts of examples/: in this process, which has already imported what they import, or in one of their own."""

from __future__ import annotations

import io
import runpy
import subprocess
import sys
from contextlib import redirect_stdout

import pytest
from conftest import ROOT


def run_example(name: str, *arguments: str) -> str:
    """Runs a script as a program and returns what it prints."""
    script = ROOT / "examples" / name
    shown = io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(shown):
        patch.syspath_prepend(str(script.parent))
        patch.setattr("sys.argv", [str(script), *arguments])
        runpy.run_path(str(script), run_name="__main__")
    return shown.getvalue()


def started_example(name: str, *arguments: str) -> str:
    """As `run_example`, in a process of its own."""
    command = [sys.executable, f"examples/{name}", *arguments]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    return run.stdout
