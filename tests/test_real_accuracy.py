"""The benchmark of real models: its questions, its checks of code, and how a run continues. On the embedded models."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ROOT

from benchmarks import real_accuracy
from benchmarks.code_tasks import FUNCTIONS
from benchmarks.real_tasks import SHOTS, code, nq, passes, squad


@pytest.fixture
def data(tmp_path):
    rows = [{"question": f"Who is {name}?", "answers": [name, f"the {name}"]} for name in ("Ada", "Bob", "Cleo")]
    passages = [{"context": "Ada met Bob.", "qas": rows[:2]}, {"context": "Cleo left.", "qas": rows[2:]}]
    (tmp_path / "squad.json").write_text(json.dumps(passages))
    lines = [json.dumps({"split": split, **row}) for split, row in zip(("shots", "test", "test"), rows, strict=True)]
    (tmp_path / "nq.jsonl").write_text("\n".join(lines))
    return tmp_path


def prompts(task):
    return [task.prompt(question).prompt for question in task.questions.questions]


def test_questions_of_each_form(data):
    chat = squad(data / "squad.json", "chat", 5)
    assert [question.id for question in chat.questions.questions] == ["0.0", "1.0"]
    assert [message["role"] for message in prompts(chat)[0]] == ["system", "user"]
    (second,) = prompts(squad(data / "squad.json", "shots", 5, question=1))
    assert second.startswith(f"Passage: {SHOTS[0][0]}")
    assert second.endswith("Question: Who is Bob?\nAnswer:")
    assert prompts(nq(data / "nq.jsonl", 1)) == ["Question: Who is Ada?\nAnswer: Ada\n\nQuestion: Who is Bob?\nAnswer:"]


def test_code_is_run_against_its_checks():
    assert len({each.name for each in FUNCTIONS}) == len(FUNCTIONS) == 40
    task = code(1)
    (double,) = task.questions.questions
    assert prompts(task) == [FUNCTIONS[0].prompt]
    for text, score in (("    return 2 * x\n", 1.0), ("    return 3 * x\n", 0.0), ("    return 2 *\n", 0.0)):
        assert task.scores(text, double) == {"benchmarks.real_tasks:passed": score}
    assert not passes("while True:\n    pass", (), seconds=0.5)
    for each in FUNCTIONS:
        compile(each.prompt + "    pass\n" + "".join(f"assert {check}\n" for check in each.checks), each.name, "exec")


def test_a_run_continues_where_the_last_one_ended(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(real_accuracy, "REAL", ROOT / "examples" / "models")
    out = tmp_path / "results.jsonl"

    def run(count):
        command = ["real_accuracy", "code", "--members", "ash", "birch", "--weights", "1:2", "1:1"]
        command += ["--thresholds", "0.5", "--dtype", "float32", "--questions", str(count), "--out", str(out)]
        monkeypatch.setattr(sys, "argv", command)
        real_accuracy.main()
        lines = map(json.loads, out.read_text().splitlines())
        return [line for line in lines if line["type"] == "answer"]

    first = run(2)
    labels = ["ash", "birch", "every step, weights 1:2", "gate birch at 0.5, weights 1:2", "every step, weights 1:1"]
    assert [line["setting"] for line in first] == [label for label in labels for _ in range(2)]
    second = run(3)
    assert second[: len(first)] == first
    assert [(line["setting"], line["id"]) for line in second[len(first) :]] == [(each, "absolute") for each in labels]
    assert "3 questions; best member alone: ash" in capsys.readouterr().out
