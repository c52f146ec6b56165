"""The house stands as its plan says: imports go downwards, files are small, names are pinned."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import gac_core

ROOT = Path(__file__).parent.parent
FLOORS = {
    "errors": 0,
    "failures": 0,
    "deadline": 0,
    "checks": 0,
    "fieldnames": 0,
    "yamlfile": 0,
    "table_cache": 0,
    "cache": 0,
    "costs": 0,
    "grammar": 0,
    "plainjson": 0,
    "threads": 0,
    "grammar_process": 0,
    "grammar_check": 0,
    "compiler": 4,
    "schema": 0,
    "tools": 0,
    "answer": 0,
    "detokenizer": 0,
    "output": 1,
    "metadata": 1,
    "config": 1,
    "sampling": 1,
    "tokenizer": 1,
    "rendering": 0,
    "limits": 0,
    "jsontext": 0,
    "callreader": 0,
    "callforms": 0,
    "pieces": 0,
    "conversation": 1,
    "escaping": 2,
    "guarding": 2,
    "lengths": 2,
    "plain": 0,
    "template": 2,
    "chat": 2,
    "slots": 1,
    "prefill": 1,
    "quantization": 2,
    "runner": 2,
    "compiled": 2,
    "draft": 2,
    "places": 1,
    "memory": 2,
    "checkpoint": 2,
    "member": 3,
    "vocabulary": 3,
    "closing": 3,
    "constraint": 3,
    "request": 4,
    "effective": 2,
    "agreement": 0,
    "aggregation": 0,
    "choice": 4,
    "executor": 4,
    "commit": 5,
    "path": 5,
    "poll": 5,
    "decoder": 5,
    "speculation": 5,
    "scheduler": 5,
    "engine": 6,
    "worker": 7,
    "calls": 8,
    "delivery": 8,
    "assembly": 7,
    "reply": 1,
    "settings": 2,
    "sharing": 0,
    "loading": 4,
    "intake": 5,
    "ensemble": 9,
    "sources": 10,
    "inspection": 4,
    "cli": 10,
}


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)


def test_imports_go_downwards():
    for path in (ROOT / "gac_core").glob("*.py"):
        if path.stem == "__init__":
            continue
        for module in imported(path):
            if module.startswith("gac_core."):
                name = module.split(".")[1]
                higher = FLOORS[name] > FLOORS[path.stem]
                assert not higher, f"{path.stem} (floor {FLOORS[path.stem]}) imports {name} (floor {FLOORS[name]})"
            assert not module.startswith(("langchain", "llama_index", "pydantic")), f"{path.stem} imports {module}"


def test_wrappers_use_only_public_names():
    for package in ("gac_langchain", "gac_llamaindex"):
        for path in (ROOT / package).glob("*.py"):
            assert not [module for module in imported(path) if module.startswith("gac_core.")], path


def test_rooms_are_small():
    for package in ("gac_core", "gac_langchain", "gac_llamaindex"):
        for path in (ROOT / package).glob("*.py"):
            text = path.read_text(encoding="utf-8")
            assert len(text.splitlines()) <= 320, path
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                    assert (node.end_lineno or 0) - node.lineno <= 65, f"{path}: {node.name}"


def test_public_names_exist_and_are_sorted():
    assert gac_core.__all__ == sorted(gac_core.__all__, key=lambda name: (not name.isupper(), name.islower(), name))
    assert all(hasattr(gac_core, name) for name in gac_core.__all__)


def test_core_needs_neither_framework():
    code = "import sys, gac_core; print([m for m in ('langchain_core', 'llama_index', 'pydantic') if m in sys.modules])"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"
