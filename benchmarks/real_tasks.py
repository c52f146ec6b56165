"""Tasks for real models, and scores of their answers: SQuAD, Natural Questions, completing Python functions."""

from __future__ import annotations

import json
import re
import string
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.code_tasks import FUNCTIONS

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


@dataclass(frozen=True)
class Item:
    """One question.

    Attributes:
        id: Its id in results; unique within its task.
        prompt: A string, or a list of messages.
        answers: Accepted answers, or the expressions that must be true of a completed function.
        stop: Strings that end the answer.
        max_tokens: Maximum number of tokens.
        completes: The code that the answer completes; None if the answer is text.
    """

    id: str
    prompt: str | list[dict[str, str]]
    answers: tuple[str, ...]
    stop: tuple[str, ...] = ()
    max_tokens: int = 32
    completes: str | None = None


def squad(path: Path, form: str, n: int, question: int = 0) -> list[Item]:
    """Returns one question about each of the first ``n`` passages.

    Args:
        path: A JSON list of ``{"context", "qas": [{"question", "answers"}]}``.
        form: ``"chat"`` (messages for the members' chat templates) or ``"shots"`` (text with three examples).
        n: Maximum number of questions.
        question: Which question of each passage; passages with fewer are left out. Default the first.
    """
    passages = json.loads(path.read_text(encoding="utf-8"))
    items = []
    for place, passage in enumerate(passages):
        if question >= len(passage["qas"]) or len(items) == n:
            continue
        asked = passage["qas"][question]
        prompt = (_chat if form == "chat" else _shots)(passage["context"], asked["question"])
        stop = () if form == "chat" else ("\n",)
        items.append(Item(f"{place}.{question}", prompt, tuple(asked["answers"]), stop))
    return items


def _chat(passage: str, question: str) -> list[dict[str, str]]:
    return [
        {"role": "system", "content": INSTRUCTION},
        {"role": "user", "content": f"Passage: {passage}\n\nQuestion: {question}"},
    ]


def _shots(passage: str, question: str) -> str:
    shown = "".join(f"Passage: {text}\nQuestion: {asked}\nAnswer: {answer}\n\n" for text, asked, answer in SHOTS)
    return f"{shown}Passage: {passage}\nQuestion: {question}\nAnswer:"


def nq(path: Path, n: int) -> list[Item]:
    """Returns the first ``n`` test questions, without passages, after the file's few-shot examples.

    Args:
        path: JSON lines of ``{"split": "shots" or "test", "question", "answers"}``.
        n: Maximum number of questions.
    """
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    shown = "".join(
        f"Question: {row['question']}\nAnswer: {row['answers'][0]}\n\n" for row in rows if row["split"] == "shots"
    )
    tests = [row for row in rows if row["split"] == "test"][:n]
    return [
        Item(str(place), f"{shown}Question: {row['question']}\nAnswer:", tuple(row["answers"]), ("\n",), 24)
        for place, row in enumerate(tests)
    ]


def code(n: int) -> list[Item]:
    """Returns the first ``n`` functions to complete."""
    stop = ("\ndef ", "\nclass ", "\nif ", "\nprint", "\nassert", "\n#", "\n@", "\n```", '\n"""')
    return [Item(each.name, each.prompt, each.checks, stop, 160, each.prompt) for each in FUNCTIONS[:n]]


def normalised(text: str) -> list[str]:
    """Returns the words of a text as SQuAD compares them: lower case, no punctuation, no articles."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return re.sub(r"\b(a|an|the)\b", " ", kept).split()


def exact(text: str, answer: str) -> float:
    """Returns whether a text equals the answer after normalisation."""
    return float(normalised(text) == normalised(answer))


def f1(text: str, answer: str) -> float:
    """Returns the harmonic mean of precision and recall over words."""
    given, wanted = normalised(text), normalised(answer)
    if not given or not wanted:
        return float(given == wanted)
    common = sum((Counter(given) & Counter(wanted)).values())
    return 2 * common / (len(given) + len(wanted))


def contains(text: str, answer: str) -> float:
    """Returns whether the text contains the answer's words consecutively."""
    return float(f" {' '.join(normalised(answer))} " in f" {' '.join(normalised(text))} ")


SCORES: dict[str, Callable[[str, str], float]] = {"exact": exact, "f1": f1, "contains": contains}


def score(item: Item, text: str) -> dict[str, float]:
    """Returns an answer's scores by name, 0 to 1 each: the best over the accepted answers; ``passed`` for code."""
    if item.completes is not None:
        return {"passed": float(passes(item.completes + text, item.answers))}
    return {name: max(rule(text, answer) for answer in item.answers) for name, rule in SCORES.items()}


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
