"""The benchmark questions of the experiments, as sets of `gac_core.evaluation`."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from benchmarks.real_tasks import SHOTS
from gac_core.evaluation.metrics import METRICS
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import Question, QuestionSet, read_questions
from gac_core.evaluation.run import Task, make_task

SHARED = Path(__file__).parent.parent.parent.parent / "shared"
DATA = SHARED / "datasets"
MAX_TOKENS = 24


def squad_questions(path: Path, task: str = "squad") -> QuestionSet:
    """Returns the first question about each passage, with the three examples of the benchmark of real models.

    Args:
        path: A JSON list of ``{"context", "qas": [{"question", "answers"}]}``.
        task: Name of the set.
    """
    data = path.read_bytes()
    questions = [
        Question(
            str(place), each["qas"][0]["question"], tuple(each["qas"][0]["answers"]), (), (each["context"],), "", task
        )
        for place, each in enumerate(json.loads(data))
    ]
    shots = [
        Question(f"shot {place}", asked, (answer,), (), (passage,), "", task)
        for place, (passage, asked, answer) in enumerate(SHOTS)
    ]
    return QuestionSet(tuple(questions), tuple(shots), path.with_stem(task), hashlib.sha256(data).hexdigest())


def short_answer_task(name: str, data: Path, count: int) -> Task:
    """Returns a random sample of questions with short answers, in plain text with examples.

    Args:
        name: ``"squad"``, or the name of a JSONL file of the folder ``benchmarks``, such as ``"triviaqa"``.
        data: Folder of the data.
        count: Number of questions.
    """
    whole = squad_questions(data / "squad-300.json") if name == "squad" else None
    questions = whole or read_questions(data / "benchmarks" / f"{name}.jsonl")
    form = PromptForm("plain", max_tokens=MAX_TOKENS)
    return make_task(questions.limited(count), form, (METRICS["exact"], METRICS["contains"]))
