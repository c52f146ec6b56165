"""The notebooks in examples/notebooks run, show true answers, and are stored without outputs."""

from __future__ import annotations

import json
import os
import sys

import nbformat
import pytest
from conftest import ROOT
from nbclient import NotebookClient
from test_prose import PATTERN

FOLDER = ROOT / "examples" / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
FACT = "The Bruden Inn is owned by Deldo Brudus."
SOURCES = [
    "The Trako Museum charges 61 crowns for a ticket. (source: museums.md)",
    "The Haldo Festival was founded by Garno Rinva. (source: festivals.md)",
]


def stored(path):
    return nbformat.read(path, as_version=4)


def shown(cell):
    """What a cell printed and its value, as text."""
    return "".join(output.get("text", "") or output.get("data", {}).get("text/plain", "") for output in cell.outputs)


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    """The name of a kernel that is this interpreter, with no configuration of the user's."""
    folder = tmp_path / "data" / "kernels" / "this"
    folder.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (folder / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "data"))
    for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR"):
        monkeypatch.setenv(name, str(tmp_path / name.lower()))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]))
    return "this"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
async def test_notebooks_run_and_answer(path, kernel):
    client = NotebookClient(
        stored(path), kernel_name=kernel, timeout=300, resources={"metadata": {"path": str(FOLDER)}}
    )
    executed = await client.async_execute()
    cells = {cell.id: shown(cell) for cell in executed.cells if cell.cell_type == "code"}
    assert cells["ask"] == FACT + "\n"
    assert cells["stream"].replace("|", "") == FACT
    assert "default: 100% of the steps ensembled" in cells["threshold"]
    assert sum(FACT in line for line in cells["alone"].splitlines()) == 2  # one member and the ensemble
    assert all(answer in cells["retrieval"] for answer in SOURCES)
    assert cells["structured"] == "Bridge(town='Borfen')"
    assert "read_chapter" in cells["agent"] or "look_up" in cells["agent"]
    assert "dropped: []" in cells["statistics"]
    assert "The Dunno Inn was built in 1814." in cells["async"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_notebooks_are_stored_without_outputs(path):
    notebook = stored(path)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert 8 <= len(code) <= 14
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert not any(PATTERN.search(cell.source) for cell in notebook.cells)


def test_both_frameworks_have_a_notebook():
    assert [path.stem for path in NOTEBOOKS] == ["langchain", "llamaindex"]
