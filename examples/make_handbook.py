"""Writes ``examples/handbook``: the demo's documents and questions, all about names that no member was trained on.

``questions.json`` has questions about the documents; ``evaluation.jsonl`` has others with their own passages, in the
format of ``gac eval``.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE / "models"))
from handbook import held_out, write_handbook  # noqa: E402


def main(folder: Path = HERE / "handbook") -> None:
    """Writes the documents and the questions into a folder."""
    pairs = write_handbook(folder)
    items = [{"question": question, "answer": answer} for question, answer in pairs]
    (folder / "questions.json").write_text(json.dumps(items, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    rows = [
        {"question": each.question, "contexts": each.passages, "answer": each.answer, "domain": each.relation}
        for each in held_out(60, 0)
    ]
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    (folder / "evaluation.jsonl").write_text(lines, encoding="utf-8")


if __name__ == "__main__":
    main()
