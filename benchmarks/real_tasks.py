"""Tasks for real models: SQuAD, Natural Questions, completing Python functions."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.code_tasks import FUNCTIONS
from gac_core.evaluation.metrics import METRICS, metric_named
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import Question, QuestionSet, read_questions
from gac_core.evaluation.task import Task, make_task

INSTRUCTION = (
    "Answer the question from the passage. Give only the answer, in as few words as possible, copied from the passage."
)

# Written for this benchmark; none of them is in SQuAD.
SHOTS = (
    (
        "The Marlow Lighthouse was completed in 1871 by the engineer Edith Crane. It stands 42 metres tall on the "
        "northern tip of Gull Island and was automated in 1988.",
        "Who built the Marlow Lighthouse?",
        "Edith Crane",
    ),
    (
        "Basalt forms when lava that is rich in magnesium and iron cools rapidly at or near the surface. More than 90% "
        "of all volcanic rock on Earth is basalt.",
        "What share of volcanic rock is basalt?",
        "More than 90%",
    ),
    (
        "In the autumn of 1923 the orchestra moved from the old town hall to a new theatre on Queen Street, where it "
        "played until the theatre burned down nine years later.",
        "To where did the orchestra move in 1923?",
        "a new theatre on Queen Street",
    ),
)


TEXT_METRICS = tuple(METRICS[name] for name in ("f1", "exact", "contains"))


def squad(path: Path, form: str, n: int, question: int = 0) -> Task:
    """Returns one question about each of the first ``n`` passages.

    Args:
        path: A JSON list of ``{"context", "qas": [{"question", "answers"}]}``.
        form: ``"chat"`` (messages for the members' chat templates) or ``"shots"`` (text with three examples).
        n: Maximum number of questions.
        question: Which question of each passage; passages with fewer are left out. Default the first.
    """
    data = path.read_bytes()
    name = f"squad-{form}"
    asked = [
        Question(
            f"{place}.{question}",
            passage["qas"][question]["question"],
            tuple(passage["qas"][question]["answers"]),
            contexts=(passage["context"],),
            task=name,
        )
        for place, passage in enumerate(json.loads(data))
        if question < len(passage["qas"])
    ]
    shots = [
        Question(str(place), text, (answer,), contexts=(passage,), task=name)
        for place, (passage, text, answer) in enumerate(SHOTS)
    ]
    prompts = PromptForm("chat", INSTRUCTION, shots=0) if form == "chat" else PromptForm("plain")
    return make_task(_set(name, asked[:n], shots, data), prompts, TEXT_METRICS)


def nq(path: Path, n: int) -> Task:
    """Returns the first ``n`` test questions, without passages, after the file's few-shot examples.

    Args:
        path: Questions in the format of `gac eval`.
        n: Maximum number of questions.
    """
    read = read_questions(path)
    return make_task(
        _set(read.name, read.questions[:n], read.shots, path.read_bytes()),
        PromptForm("plain", max_tokens=24),
        TEXT_METRICS,
    )


def code(n: int) -> Task:
    """Returns the first ``n`` functions to complete; their answers are expressions that must be true afterwards."""
    stop = ("\ndef ", "\nclass ", "\nif ", "\nprint", "\nassert", "\n#", "\n@", "\n```", '\n"""')
    functions = [Question(each.name, each.prompt, each.checks, task="code") for each in FUNCTIONS]
    data = json.dumps([(each.question, each.answers) for each in functions]).encode()
    form = PromptForm("raw", stop=stop, max_tokens=160)
    return make_task(_set("code", functions[:n], (), data), form, [metric_named("benchmarks.real_tasks:passed")])


def _set(name: str, questions: Sequence[Question], shots: Sequence[Question], data: bytes) -> QuestionSet:
    digest = hashlib.sha256(data).hexdigest()
    return QuestionSet(tuple(questions), tuple(shots), Path(f"{name}.jsonl"), digest)


def passed(text: str, question: Question) -> float:
    """Returns whether a completed function passes its checks: a metric of `gac eval`."""
    return float(passes(question.question + text, question.answers))


def passes(program: str, checks: tuple[str, ...], seconds: float = 10.0) -> bool:
    """Returns whether a program runs in a child process and all checks are true after it.

    Generated code is isolated by nothing but the process, a time limit and Python's ``-I``.
    """
    source = program + "\n" + "".join(f"assert {check}\n" for check in checks)
    options: dict[str, Any] = {"capture_output": True, "timeout": seconds, "stdin": subprocess.DEVNULL, "check": False}
    try:
        return subprocess.run([sys.executable, "-I", "-c", source], **options).returncode == 0
    except (subprocess.TimeoutExpired, ValueError):  # ValueError: a NUL byte in the text
        return False
