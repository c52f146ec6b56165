"""The passages and prompts of the retrieval examples, the same in both frameworks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from common import Task

INSTRUCTION = (
    "Answer the question from the passages. Give only the answer, in as few words as possible, copied from the "
    "passages."
)
ABSENT = "not in the documents"
ASK = "Passages:\n\n{context}\n\nQuestion: {question}"
# Two solved questions: the base model among the members learns from them what an answer looks like.
SHOTS = (
    (
        "The Marlow Lighthouse was completed in 1871 by the engineer Edith Crane. It stands 42 metres tall.",
        "Who built the Marlow Lighthouse?",
        "Edith Crane",
    ),
    (
        "Basalt forms when lava cools rapidly. More than 90% of all volcanic rock on Earth is basalt.",
        "What share of volcanic rock is basalt?",
        "More than 90%",
    ),
)


def passages_and_tasks(path: Path) -> tuple[list[str], list[Task]]:
    """Returns the passages of a file in SQuAD's format and one question about each that has any.

    Args:
        path: A JSON list of ``{"context": ..., "qas": [{"question": ..., "answers": [...]}]}``.
    """
    entries = json.loads(path.read_text(encoding="utf-8"))
    first = [entry["qas"][0] for entry in entries if entry["qas"]]
    tasks = [Task(each["question"], tuple(each["answers"])) for each in first]
    return [entry["context"] for entry in entries], tasks


def passages_with_gaps(path: Path) -> tuple[list[str], list[Task]]:
    """`passages_and_tasks` without the passages of every second question, whose answer is then `ABSENT`."""
    entries = json.loads(path.read_text(encoding="utf-8"))
    _, tasks = passages_and_tasks(path)
    asked = [entry["context"] for entry in entries if entry["qas"]]
    texts = [entry["context"] for entry in entries if entry["context"] not in asked[1::2]]
    known = [replace(task, answers=(ABSENT,)) if number % 2 else task for number, task in enumerate(tasks)]
    return texts, known
