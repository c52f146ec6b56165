"""The LlamaIndex examples run on the embedded members and show what they say they show."""

from __future__ import annotations

import subprocess
import sys

import pytest
from conftest import ROOT


def run(name, *arguments):
    command = [sys.executable, f"examples/{name}_llamaindex.py", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout


def test_the_chat_remembers_its_questions():
    shown = run("chat", "--question", "How much is a ticket for the Trako Museum?", "--question", "Who founded it?")
    assert "The Trako Museum charges 61 crowns for a ticket." in shown
    assert "passages from: museums.md" in shown
    assert "messages remembered: 4" in shown


def test_the_agent_calls_its_tool():
    shown = run("agent")
    assert "call: look_up({'chapter': '" in shown
    assert "answer: " in shown


@pytest.mark.parametrize("threshold", ["0", "1"])
def test_objects_are_whole(threshold):
    shown = run("structured", "--threshold", threshold)
    whole = next(line for line in shown.splitlines() if line.startswith("object: "))
    assert whole.removeprefix("object: ") == shown.splitlines()[-2].removeprefix("so far: ")
    assert whole.startswith("object: Bridge(material=")
    assert shown.splitlines()[-1].startswith('as JSON: {"material":')
