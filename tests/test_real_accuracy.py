"""The benchmark of real models: its scores, its checks of code, and how a run continues. On the embedded models."""

from __future__ import annotations

import json
import sys

import pytest
from conftest import ROOT

from benchmarks import real_accuracy
from benchmarks.code_tasks import FUNCTIONS
from benchmarks.real_tasks import SHOTS, code, nq, passes, score, squad


@pytest.fixture
def data(tmp_path):
    rows = [{"question": f"Who is {name}?", "answers": [name, f"the {name}"]} for name in ("Ada", "Bob", "Cleo")]
    passages = [{"context": "Ada met Bob.", "qas": rows[:2]}, {"context": "Cleo left.", "qas": rows[2:]}]
    (tmp_path / "squad.json").write_text(json.dumps(passages))
    lines = [json.dumps({"split": split, **row}) for split, row in zip(("shots", "test", "test"), rows, strict=True)]
    (tmp_path / "nq.jsonl").write_text("\n".join(lines))
    return tmp_path


def test_scores_take_the_best_accepted_answer(data):
    item = squad(data / "squad.json", "shots", 1)[0]
    assert score(item, " The Ada! ") == {"exact": 1.0, "f1": 1.0, "contains": 1.0}
    assert score(item, "It is Ada") == {"exact": 0.0, "f1": 0.5, "contains": 1.0}
    assert score(item, "Adam") == {"exact": 0.0, "f1": 0.0, "contains": 0.0}
    assert score(item, "") == {"exact": 0.0, "f1": 0.0, "contains": 0.0}


def test_questions_of_each_form(data):
    chat = squad(data / "squad.json", "chat", 5)
    assert [item.id for item in chat] == ["0.0", "1.0"]
    assert [message["role"] for message in chat[0].prompt] == ["system", "user"]
    (second,) = squad(data / "squad.json", "shots", 5, question=1)
    assert second.prompt.startswith(f"Passage: {SHOTS[0][0]}")
    assert second.prompt.endswith("Question: Who is Bob?\nAnswer:")
    assert [item.prompt for item in nq(data / "nq.jsonl", 1)] == [
        "Question: Who is Ada?\nAnswer: Ada\n\nQuestion: Who is Bob?\nAnswer:"
    ]


def test_code_is_run_against_its_checks():
    assert len({each.name for each in FUNCTIONS}) == len(FUNCTIONS) == 40
    double = code(1)[0]
    assert score(double, "    return 2 * x\n") == {"passed": 1.0}
    assert score(double, "    return 3 * x\n") == {"passed": 0.0}
    assert score(double, "    return 2 *\n") == {"passed": 0.0}
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
        return [json.loads(line) for line in out.read_text().splitlines()]

    first = run(2)
    ways = ["ash alone", "birch alone", "every step 1:2", "threshold 0.5 1:2, gate birch", "every step 1:1"]
    assert [line["way"] for line in first] == [way for way in ways for _ in range(2)]
    for line in first:
        shares = {"alone": {0}, "every": {line["steps"]}, "threshold": range(line["steps"] + 1)}
        assert line["ensembled"] in next(share for word, share in shares.items() if word in line["way"])
    second = run(3)
    assert second[: len(first)] == first
    assert [(line["way"], line["id"]) for line in second[len(first) :]] == [(way, "absolute") for way in ways]
    assert "3 questions; best member alone: ash alone" in capsys.readouterr().out
