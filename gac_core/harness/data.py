"""Tasks on local data: reads the questions, and scores answers as ``gac eval`` does."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from gac_core.errors import ConfigError, quote
from gac_core.evaluation.metrics import METRICS
from gac_core.evaluation.prompts import PromptForm, with_examples
from gac_core.evaluation.questions import Question, read_questions

TASKS = Path(__file__).parent / "tasks"
"""The folder with the task files, for ``--include_path``."""

VARIABLE = "GAC_BENCHMARKS"
"""The environment variable that names the folder with the data."""

# The files that a task's data may lie in, and the examples before each question.
_FILES = {
    "mmlu": (("mmlu.jsonl",), 5),
    "nq": (("nq.jsonl",), 5),
    "triviaqa": (("triviaqa.jsonl",), 5),
    "bbh": (("bbh.jsonl",), 3),
    "gsm8k": (("gsm8k.jsonl", "gsm8k-test.jsonl"), 5),
    "squad": (("squad.jsonl",), 2),
}


def load(task: str, folder: str | None = None, shots: int | None = None, **_: Any) -> dict[str, Any]:
    """Returns the data of a task: called by lm-evaluation-harness, which passes what ``--metadata`` gives.

    Examples are the lines with ``"split": "shots"``, of the question's domain if they have domains; without such lines
    the first questions (of each domain), which are then not asked.

    Args:
        task: ``mmlu``, ``nq``, ``triviaqa``, ``bbh``, ``gsm8k`` or ``squad``.
        folder: The folder with the data, or one above ``benchmarks``. Default: what ``GAC_BENCHMARKS`` names.
        shots: Examples before each question. Default: those of the data, 5 at most; without any 5 for GSM8K, 3 for
            BBH, 2 for SQuAD.
        **_: Ignored: metadata that other tasks use.

    Returns:
        A split ``test``. Its rows have ``prompt`` (with the examples), ``answers``, ``letters`` (of the choices) and
        ``right`` (the index of the right one).

    Raises:
        ConfigError: The data is not there.
        EvaluationError: A line is wrong.
    """
    import datasets  # type: ignore[import-untyped]

    names, default = _FILES[task]
    path = _find(task, names, folder)
    read = read_questions(path)
    wanted = default if shots is None and not read.shots else shots
    form = PromptForm("plain", shots=wanted, solutions=task == "gsm8k")
    questions, examples = with_examples(read, form)
    rows = [_row(question, form, examples.of(question)) for question in questions.questions]
    return {"test": datasets.Dataset.from_list(rows)}


def _find(task: str, names: Sequence[str], folder: str | None) -> Path:
    """Returns the file of a task."""
    given = folder or os.environ.get(VARIABLE)
    if not given:
        raise ConfigError(
            f"the task gac_{task} needs a folder with {' or '.join(names)}; set {VARIABLE}, or give "
            '--metadata \'{"folder": "..."}\''
        )
    for place in (Path(given), Path(given) / "benchmarks"):
        for name in names:
            if (place / name).is_file():
                return place / name
    raise ConfigError(f"the folder {quote(given)} has no {' or '.join(names)}, which the task gac_{task} needs")


def _row(question: Question, form: PromptForm, shots: Sequence[Question]) -> dict[str, Any]:
    letters = question.letters
    return {
        "prompt": form.prompt(question, shots).prompt,
        "answers": list(question.answers),
        "letters": [chr(ord("A") + index) for index in range(len(question.choices))],
        "right": ord(letters[0]) - ord("A") if letters else -1,
    }


def words(row: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Returns exact match and F1 of an answer, normalised as SQuAD compares answers."""
    return {"exact_match": _score("exact", row, results), "f1": _score("f1", row, results)}


def number(row: Mapping[str, Any], results: Sequence[str]) -> dict[str, float]:
    """Returns whether an answer ends with the right number."""
    return {"exact_match": _score("number", row, results)}


def _score(metric: str, row: Mapping[str, Any], results: Sequence[str]) -> float:
    return METRICS[metric].score(results[0], Question("", "", tuple(row["answers"])))
