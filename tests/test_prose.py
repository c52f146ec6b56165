"""Docstrings, comments, errors and documents: phrases that the style of this project replaced do not return."""

from __future__ import annotations

import io
import re
import tokenize

import pytest
from conftest import ROOT

# Each is a regular expression, matched over line breaks and without regard to case.
PHRASES = [
    r"knows? nothing",
    r"(that|which|and|it|this) (is|are) none\b(?! of)",
    r"(members?|model|it|they|callers?|processes) (is|are) told",
    r"nobody (is|who|listed|asked|enforces|gets|reads|waits|hears)",
    r"is asked for (its|their) opinion",
    r"what (it|they|he|she) (says?|said)\b",
    r"whoever (asks|waits|reads|holds|leaves|opens)",
    r"hears? of",
    r"reaches nobody",
    r"harms? (nobody|neither)",
    r"(at|by) the (door|room|floor)\b",
]
PATTERN = re.compile("|".join(f"(?:{phrase})" for phrase in PHRASES).replace(" ", r"[\s#]+"), flags=re.I)
FILES = [
    path
    for folder in ("gac_core", "gac_langchain", "gac_llamaindex", "benchmarks", "examples", "docs")
    for path in sorted((ROOT / folder).rglob("*"))
    if path.suffix in (".py", ".md") and "handbook" not in path.parts
]
FILES += [ROOT / name for name in ("README.md", "CONTRIBUTING.md")]


def prose_of(path):
    """The lines of a document, or of a module's comments and strings, with their numbers."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".md":
        return list(enumerate(text.splitlines(), 1))
    kinds = (tokenize.COMMENT, tokenize.STRING)
    tokens = [token for token in tokenize.generate_tokens(io.StringIO(text).readline) if token.type in kinds]
    return [(token.start[0] + n, line) for token in tokens for n, line in enumerate(token.string.splitlines())]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_replaced_phrase_returns(path):
    lines = prose_of(path)
    text = "\n".join(line for _, line in lines)
    found = [(lines[text[: match.start()].count("\n")][0], match[0]) for match in PATTERN.finditer(text)]
    assert not found


@pytest.mark.parametrize(
    "text", ["Knows nothing of models.", "a path that is\n    # none", "Members are told the schema."]
)
def test_phrases_are_found(text):
    assert PATTERN.search(text)
