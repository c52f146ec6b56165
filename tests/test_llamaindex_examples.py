"""The LlamaIndex examples run on the embedded members and show what they say they show."""

from __future__ import annotations

import pytest
from example_scripts import run_example, started_example


def run(name, *arguments):
    return run_example(f"{name}_llamaindex.py", *arguments)


def test_the_chat_remembers_its_questions():
    shown = run("chat", "--question", "How much is a ticket for the Trako Museum?", "--question", "Who founded it?")
    assert "The Trako Museum charges 61 crowns for a ticket." in shown
    assert "passages from: museums.md" in shown
    assert "messages remembered: 4" in shown


def test_the_agent_calls_its_tool():
    shown = started_example("agent_llamaindex.py")  # agents of LlamaIndex warn of pydantic
    assert "call: look_up({'chapter': '" in shown
    assert "answer: " in shown


@pytest.mark.parametrize("threshold", ["0", "1"])
def test_objects_are_whole(threshold):
    shown = run("structured", "--threshold", threshold)
    whole = next(line for line in shown.splitlines() if line.startswith("object: "))
    assert whole.removeprefix("object: ") == shown.splitlines()[-2].removeprefix("so far: ")
    assert whole.startswith("object: Bridge(material=")
    assert shown.splitlines()[-1].startswith('as JSON: {"material":')


def test_voices_are_warmed_and_cited():
    shown = run("voices", "--question", "In which town is the Velgin Bridge?").splitlines()
    assert shown[0].startswith("40 passages read in ")
    assert shown[2].strip() == "The Velgin Bridge crosses the river in Borfen."
    assert shown[-1].startswith("   doubt: passages agree on ")
