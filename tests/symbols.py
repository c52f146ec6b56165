"""An index of the names in the code, made from its syntax trees, and what a piece of inline code names."""

from __future__ import annotations

import ast
import builtins
import itertools
import re
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parent.parent
PACKAGES = ("gac_core", "gac_langchain", "gac_llamaindex", "benchmarks", "examples", "tests")
WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
# Variables of examples that are called as modules are.
VARIABLES = frozenset(["output", "model", "llm", "chat", "ensemble"])
FILE = re.compile(r"[\w./~*-]+\.(?:py|md|yaml|toml|txt)|(?:tests|docs|examples|benchmarks|gac_\w+)/[\w./*-]*")


class Index:
    """The names of the code.

    Attributes:
        members: Per class, module or package the names that it has.
        bases: Per class the names of its base classes.
        imported: Names that are imported from elsewhere.
        words: Every identifier, and every string that looks like one.
    """

    def __init__(self) -> None:
        self.members: dict[str, set[str]] = {}
        self.bases: dict[str, set[str]] = {}
        self.defined: set[str] = set(dir(builtins))
        self.imported: set[str] = set()
        self.words: set[str] = set()
        self.texts: dict[str, str] = {}
        extras = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
        self.words |= set(re.findall(r"^(\w+) = \[", extras, flags=re.M))
        self.files = {path.name for path in ROOT.glob("*") if path.is_file()}
        for package in PACKAGES:
            for path in sorted((ROOT / package).rglob("*")):
                self.files.add(path.name)
                if path.suffix == ".py":
                    self._read(path)

    def _read(self, path: Path) -> None:
        text = path.read_text(encoding="utf-8")
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = parts[-2] if parts[-1] == "__init__" else parts[-1]
        if parts[0] != "tests" or name == "conftest":
            self.texts[".".join(parts).removesuffix(".__init__")] = text
        self.defined |= {name, *parts[:-1]}
        for outer, inner in itertools.pairwise(parts):
            self.members.setdefault(outer, set()).add(inner)
        tree = ast.parse(text)
        if parts[0] == "tests":
            self.defined |= {node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef)}
            return
        self._scope(tree, name)
        for node in ast.walk(tree):
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                self.imported |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            self.words |= set(_words(node))

    def _scope(self, scope: ast.Module | ast.ClassDef, name: str) -> None:
        """Adds the names that a module or class defines, with the attributes that methods set on ``self``."""
        own = self.members.setdefault(name, set())
        for node in scope.body:
            if isinstance(node, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                own.add(node.name)
                self.defined.add(node.name)
            if isinstance(node, ast.ClassDef):
                self.bases[node.name] = {base for each in node.bases for base in WORD.findall(ast.unparse(each))}
                self._scope(node, node.name)
            targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
            found = {each.id for target in targets if target for each in ast.walk(target) if isinstance(each, ast.Name)}
            own |= found
            self.defined |= found
            if isinstance(node, ast.ImportFrom):
                own |= {alias.asname or alias.name for alias in node.names}
        if isinstance(scope, ast.ClassDef):
            own |= {
                node.attr
                for node in ast.walk(scope)
                if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"
            }

    def has(self, owner: str, name: str) -> bool:
        """Whether a class or module has a name, itself or by a base class of this code; True if a base is foreign."""
        if name in self.members.get(owner, ()):
            return True
        bases = self.bases.get(owner, set()) - {"Protocol", "Generic", "Exception", "Enum", "StrEnum", "ABC"}
        return any(base not in self.members or self.has(base, name) for base in bases)


def _words(node: ast.AST) -> Iterator[str]:
    for field in ("id", "arg", "attr", "name"):
        if isinstance(value := getattr(node, field, None), str):
            yield value
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        yield from WORD.findall(node.value) if len(node.value) < 60 else ()


def code_of(markdown: str) -> list[str]:
    """The pieces of inline code of a document, without fenced blocks."""
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", re.sub(r"```.*?```", "", markdown, flags=re.S))


def unknown(code: str, index: Index, foreign: frozenset[str]) -> str | None:
    """What a piece of inline code names that does not exist, or None.

    Args:
        code: The piece.
        index: The names of the code.
        foreign: Names of other projects.
    """
    if code in foreign:
        return None
    if FILE.fullmatch(code):
        return _unknown_file(code, index)
    if match := re.match(r"make (\S+)", code):
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.M)
        return None if match[1] in targets else f"target {match[1]}"
    if match := re.match(r"python -m ([\w.]+)(.*)", code):
        source = index.texts.get(match[1])
        options = re.findall(r"--[\w-]+", match[2])
        missing = [option for option in options if source is None or f'"{option}"' not in source]
        return f"module {match[1]}" if source is None else f"option {missing[0]}" if missing else None
    if re.fullmatch(r"\$?GAC_\w+", code):
        return None if any(f'"{code.lstrip("$")}"' in text for text in index.texts.values()) else "variable"
    return _unknown_name(code, index, foreign)


def _unknown_file(code: str, index: Index) -> str | None:
    if code.startswith("~"):
        return None
    if "*" in code:
        return None if list(ROOT.glob(code)) else "file"
    if "/" in code:
        return None if (ROOT / code).exists() or (ROOT / "gac_core" / code).exists() else "file"
    return None if code in index.files else "file"


def _unknown_name(code: str, index: Index, foreign: frozenset[str]) -> str | None:
    tree = _parsed(code)
    if tree is None:
        return None
    given = {id(node) for call in ast.walk(tree) if isinstance(call, ast.Call) for node in call.args}
    given |= {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and isinstance(node.value, (ast.Name, ast.Attribute)):
            owner = node.value.id if isinstance(node.value, ast.Name) else node.value.attr
            if owner in index.members and owner not in VARIABLES | foreign and not index.has(owner, node.attr):
                return f"{owner}.{node.attr}"
        name = getattr(node, "id", None) or (node.arg if isinstance(node, ast.keyword) else None)
        if name in (None, "f", "x") or name in foreign | index.defined | index.imported or id(node) in given:
            continue
        is_class = name[0].isupper() and not name.isupper()
        if is_class or name not in index.words:
            return name
    return None


def _parsed(code: str) -> ast.AST | None:
    """A name, call, attribute or list of keyword arguments as a syntax tree; None for anything else."""
    if not code.isascii() or re.search(r"\w-\w|^\s|\s$", code) or code in ("not", "return"):
        return None
    form = f"x{code}" if code.startswith(".") else f"f({code}None)" if code.endswith("=") else code
    for text in (form, f"f({form})"):
        try:
            return ast.parse(text.replace("...", "*x"), mode="eval")
        except SyntaxError:
            continue
    return None
