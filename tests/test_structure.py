"""Packages and modules: imports go downwards, files and functions are small, and public names are pinned.

Floors are derived from the imports: an item's floor is one above the highest item that it imports.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import gac_core

ROOT = Path(__file__).parent.parent
CORE = ROOT / "gac_core"
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(CORE.rglob("*.py"))
    if path != CORE / "__init__.py"
}
SOURCES = [
    path for package in ("gac_core", "gac_langchain", "gac_llamaindex") for path in (ROOT / package).rglob("*.py")
]


def imports(code: str, module: str = "gac_core.x") -> set[str]:
    """Returns the dotted names of what some code imports, in all forms: also relative, within functions and by text."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                base = ".".join([*module.split(".")[: -node.level], *([base] if base else [])])
            found |= {f"{base}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if name in ("import_module", "__import__"):
                found.add(str(node.args[0].value))
    return found


def module_of(name: str) -> str | None:
    """Returns the module of this package that holds a dotted name, or None; the package itself is ``gac_core``."""
    if name.split(".")[0] != "gac_core":
        return None
    parts = name.split(".")
    while parts and ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts) or "gac_core"


def imported_modules(module: str) -> set[str]:
    names = imports(MODULES[module].read_text(encoding="utf-8"), module)
    return {found for name in names if (found := module_of(name)) and found != module}


def package_of(module: str) -> str:
    """Returns a module's package; a module of the root stands for itself."""
    return ".".join(module.split(".")[:2])


def floors(graph: dict[str, set[str]]) -> dict[str, int]:
    """Returns each item's floor; raises `CycleError` where imports go in a circle."""
    levels: dict[str, int] = {}
    for item in TopologicalSorter(graph).static_order():
        levels[item] = max((levels[below] + 1 for below in graph.get(item, ())), default=0)
    return levels


def show(levels: dict[str, int]) -> str:
    rows: dict[int, list[str]] = {}
    for item, level in levels.items():
        rows.setdefault(level, []).append(item.removeprefix("gac_core."))
    return "\n".join(f"{level:2}  {', '.join(sorted(rows[level]))}" for level in sorted(rows, reverse=True))


def test_packages_have_no_cycles(capsys):
    graph: dict[str, set[str]] = {}
    for module in MODULES:
        below = {package_of(found) for found in imported_modules(module)}
        assert "gac_core" not in below, f"{module} imports from the root of the package, which imports it"
        graph.setdefault(package_of(module), set()).update(below - {package_of(module)})
    levels = floors(graph)
    with capsys.disabled():
        print("\nfloors of the packages:\n" + show(levels))
    assert levels["gac_core.errors"] == 1
    assert levels["gac_core.ensemble"] > levels["gac_core.engine"] > levels["gac_core.decoding"]


def test_modules_have_no_cycles():
    levels = floors({module: imported_modules(module) for module in MODULES})
    assert max(levels.values()) > 5


def test_a_cycle_is_found():
    with pytest.raises(CycleError):
        floors({"a": {"b"}, "b": {"c"}, "c": {"a"}})


@pytest.mark.parametrize(
    "code",
    [
        "import gac_core.engine.engine",
        "import gac_core.engine.engine as e",
        "from gac_core.engine.engine import Engine",
        "from gac_core.engine import engine",
        "from gac_core import engine",
        "from .engine import engine",
        "def f():\n    from gac_core.engine.engine import Engine",
        "import importlib\nimportlib.import_module('gac_core.engine.engine')",
        "__import__('gac_core.engine.engine')",
    ],
)
def test_every_form_of_import_is_seen(code):
    assert {package_of(found) for name in imports(code) if (found := module_of(name))} == {"gac_core.engine"}


FRAMEWORKS = {"langchain", "langchain_core", "llama_index", "pydantic"}
SERVERS = {"fastapi", "starlette", "sse_starlette", "uvicorn", "prometheus_client", "opentelemetry", "pydantic"}


def test_the_core_imports_no_framework():
    for module, path in MODULES.items():
        tops = {name.split(".")[0] for name in imports(path.read_text(encoding="utf-8"))}
        assert not tops & (FRAMEWORKS - SERVERS), module
        assert package_of(module) == "gac_core.server" or not tops & SERVERS, module
    code = f"import sys, gac_core, gac_core.cli; print(sorted({FRAMEWORKS | SERVERS!r} & set(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "[]"


def test_only_its_command_imports_the_server():
    for module in MODULES:
        if package_of(module) not in ("gac_core.server", "gac_core.cli"):
            assert not {package_of(found) for found in imported_modules(module)} & {"gac_core.server"}, module


def test_wrappers_use_only_public_names():
    public = {f"gac_core.{name}" for name in gac_core.__all__} | {"gac_core"}
    for path in (path for path in SOURCES if not path.is_relative_to(CORE)):
        module = ".".join(path.relative_to(ROOT).with_suffix("").parts)
        code = path.read_text(encoding="utf-8")
        used = {name for name in imports(code, module) if name.split(".")[0] == "gac_core"}
        used |= {
            f"gac_core.{node.attr}"
            for node in ast.walk(ast.parse(code))
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gac_core"
        }
        assert used <= public, f"{path.name} uses {sorted(used - public)}, which gac_core does not make public"


def test_files_and_functions_are_small():
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        assert len(text.splitlines()) <= 320, path
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                assert (node.end_lineno or 0) - node.lineno <= 65, f"{path}: {node.name}"


def test_files_of_tests_are_small():
    for path in (ROOT / "tests").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) <= 320, path


def test_public_names_are_pinned():
    """Adding, removing or renaming a public name must be meant: this list and the changelog change with it."""
    assert gac_core.__all__ == sorted(gac_core.__all__, key=lambda name: (not name.isupper(), name.islower(), name))
    assert all(hasattr(gac_core, name) for name in gac_core.__all__)
    pinned = (Path(__file__).parent / "public_names.txt").read_text(encoding="utf-8").split()
    assert sorted(gac_core.__all__) == sorted(pinned)
