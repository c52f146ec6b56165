"""Shared by the retrieval examples: documents of a folder, their questions, and a BM25 index over passages."""

from __future__ import annotations

import argparse
import json
from dataclasses import dataclass
from pathlib import Path

import bm25s

HERE = Path(__file__).parent
EMBEDDED = [str(HERE / "models" / name) for name in ("ash", "birch", "cedar")]
SYSTEM = "Answer the question from the passages. If the passages do not tell, say so."
USER = "Passages:\n\n{context}\n\nQuestion: {question}"


@dataclass(frozen=True)
class Question:
    """A question and, if known, its correct answer."""

    text: str
    answer: str | None = None


def arguments(description: str, threshold: float | None = 0.5, least: float | None = None) -> argparse.Namespace:
    """Parses the command line of the examples.

    Args:
        description: The example's docstring.
        threshold: Default of ``--threshold``, 0.5 by default; None: the example has no such option.
        least: Default of ``--least``; None (default): the example has no such option.
    """
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--models", nargs="+", default=EMBEDDED, help="folders or hub names (default: the embedded)")
    parser.add_argument("--weights", nargs="+", type=float, help="one per model (default: 1 each)")
    parser.add_argument("--documents", type=Path, default=HERE / "handbook", help="folder of .md and .txt files")
    parser.add_argument("--question", action="append", help="ask this instead of the handbook's questions; repeatable")
    if threshold is not None:
        parser.add_argument("--threshold", type=float, default=threshold, help="the gate decides alone at or above it")
    parser.add_argument(
        "--passages", type=int, default=2, help="passages to retrieve (the embedded models are accurate with few)"
    )
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--max-tokens", type=int, default=64)
    if least is not None:
        parser.add_argument("--least", type=float, default=least, help="share of the tokens to agree on, 0 to 1")
    return parser.parse_args()


def read_documents(folder: Path) -> dict[str, str]:
    """Returns the texts of a folder by file name."""
    files = sorted(path for path in folder.rglob("*") if path.suffix in (".md", ".txt"))
    if not files:
        raise SystemExit(f"no .md or .txt file in {folder}; pass another folder with --documents")
    return {path.name: path.read_text(encoding="utf-8") for path in files}


def questions(given: list[str] | None, folder: Path) -> list[Question]:
    """Returns the given questions, or those of ``questions.json`` in the folder of the documents."""
    if given:
        return [Question(text) for text in given]
    path = folder / "questions.json"
    if not path.exists():
        raise SystemExit(f"{folder} has no questions.json; pass --question")
    return [Question(item["question"], item["answer"]) for item in json.loads(path.read_text(encoding="utf-8"))]


class Bm25:
    """A BM25 index.

    Args:
        passages: The passages to search.
    """

    def __init__(self, passages: list[str]) -> None:
        self._index = bm25s.BM25()
        self._index.index(bm25s.tokenize(passages, show_progress=False), show_progress=False)
        self._size = len(passages)

    def search(self, query: str, k: int) -> list[int]:
        """Returns the indices of the k best passages, best first."""
        return [index for index, _ in self.scored(query, k)]

    def scored(self, query: str, k: int) -> list[tuple[int, float]]:
        """Returns the indices of the k best passages with their scores, best first."""
        tokens = bm25s.tokenize([query], show_progress=False)
        found, scores = self._index.retrieve(tokens, k=min(k, self._size), show_progress=False)
        return [(int(index), float(score)) for index, score in zip(found[0], scores[0], strict=True)]


def source_of(answer: str, question: str, passages: list[str]) -> int | None:
    """Returns the index of the passage with most of the answer's words, counting only those not in the question.

    None if no passage has any of them ("The passages do not say.").
    """
    new = _words(answer) - _words(question)
    counts = [len(new & _words(passage)) for passage in passages]
    return counts.index(max(counts)) if counts and max(counts) else None


def _words(text: str) -> set[str]:
    """Returns the words of a text as BM25 indexes them: lower case, without stop words."""
    return set(bm25s.tokenize([text], return_ids=False, show_progress=False)[0])
