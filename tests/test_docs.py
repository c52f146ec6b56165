"""What the README and the examples say is run."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
BLOCKS = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.S)


@pytest.mark.parametrize("code", BLOCKS)
def test_readme_code_runs(code, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    exec(compile(code, "README.md", "exec"), {})


@pytest.mark.parametrize("name", ["rag_langchain.py", "rag_llamaindex.py"])
def test_examples_answer_a_question(name):
    command = [sys.executable, f"examples/{name}", "--question", "Where is the Torno Bridge?", "--max-tokens", "16"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "Where is the Torno Bridge?" in run.stdout
    assert "source" in run.stdout


@pytest.mark.parametrize(
    ("name", "shown"), [("chat_langchain.py", ["And who built", "source:"]), ("agent_langchain.py", ["call:", "year="])]
)
def test_examples_run(name, shown):
    run = subprocess.run([sys.executable, f"examples/{name}"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert all(text in run.stdout for text in shown), run.stdout


def test_the_handbook_is_what_its_script_writes(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    import make_handbook

    make_handbook.main(tmp_path)
    written = {path.name: path.read_text(encoding="utf-8") for path in tmp_path.iterdir()}
    kept = {path.name: path.read_text(encoding="utf-8") for path in (ROOT / "examples" / "handbook").iterdir()}
    assert written == kept
