"""Files of questions about passages that the embedded members can answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from conftest import ROOT

sys.path.insert(0, str(ROOT / "examples" / "models"))
from handbook import SYSTEM, held_out

__all__ = ["SYSTEM", "write_questions"]


def write_questions(path: Path, count: int, seed: int = 3, domain: str | None = None) -> Path:
    """Writes questions as `gac eval` reads them; their domain is that of the handbook, if none is given."""
    rows = [
        {
            "question": each.question,
            "answer": each.answer,
            "contexts": each.passages,
            "domain": domain or each.relation,
        }
        for each in held_out(count, seed)
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path
