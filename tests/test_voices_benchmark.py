"""The benchmark of voices: its retrieval sets, arms and tables, and how a run continues. On an embedded model."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import ROOT

from benchmarks import voices
from benchmarks.voices_arms import ARMS, INJECTIONS, PLACE, injected, without_gold
from benchmarks.voices_data import bm25, cases, with_negatives
from benchmarks.voices_first_token import reordered
from benchmarks.voices_first_token import table as times
from benchmarks.voices_tables import auroc, auroc_interval, detection, follows, robustness

FACTS = {"sky": "blue", "grass": "green", "sun": "hot", "ice": "cold", "sea": "deep", "sand": "dry"}


@pytest.fixture
def data(tmp_path):
    path = tmp_path / "squad.json"
    asked = {noun: [{"question": f"What is the {noun}?", "answers": [word]}] for noun, word in FACTS.items()}
    passages = [{"context": f"The {noun} is {FACTS[noun]}.", "qas": qas} for noun, qas in asked.items()]
    path.write_text(json.dumps(passages))
    return path


def test_gold_passage_stands_where_the_retriever_ranks_it():
    scores = np.array([0.1, 0.9, 0.5, 0.9, 0.3])
    assert with_negatives(scores, 1, 2) == [1, 3, 2]
    assert with_negatives(scores, 4, 2) == [1, 3, 4]
    assert with_negatives(scores, 0, 2) == [1, 3, 0]


def test_cases_are_shuffled_the_same_way_for_all_sets(data):
    few, many = cases(data, bm25, 2), cases(data, bm25, 4)
    assert [case.id for case in few] == [case.id for case in many] != sorted(case.id for case in few)
    for case in many:
        assert len(case.passages) == 5
        assert case.answers[0] in case.passages[case.gold].text
        assert [each.score for each in case.passages] == sorted((each.score for each in case.passages), reverse=True)
        assert case.gold == 0


def test_arms_share_one_form(data):
    (case, *_) = cases(data, bm25, 3)
    texts = [passage.text for passage in case.passages]
    whole, place = ARMS["long"](case).prompt, ARMS["mean, scores"](case).prompt
    assert whole[1]["content"] == place.prompt[1]["content"].replace(PLACE, "\n\n".join(texts))
    assert [document.text for document in place.documents] == texts
    assert ARMS["top"](case).digest == ARMS["gold"](case).digest != ARMS["long"](case).digest
    assert [each.text for each in ARMS["mean, 2 passages"](case).prompt.documents] == texts[:2]


def test_injected_instruction_replaces_the_best_other_passage(data):
    for case in cases(data, bm25, 3):
        attacked = injected(case)
        assert attacked.passages[0] == case.passages[0]
        assert attacked.passages[1].score == case.passages[1].score
        wordings = {wording.replace("{question}", case.question) for wording in INJECTIONS}
        assert attacked.passages[1].text in wordings
        assert case.passages[0] not in without_gold(case).passages


def test_auroc_counts_pairs():
    assert auroc([2.0, 3.0], [1.0, 2.0]) == pytest.approx(3.5 / 4)
    interval = auroc_interval([2.0, 3.0, 4.0, 1.0], [1.0, 2.0, 0.0, 1.5])
    assert interval.low < interval.value < interval.high <= 1


def test_answers_that_follow_the_instruction():
    assert follows({"text": "Banana."}) == 1
    assert follows({"text": "the sky"}) == 0
    good, bad = {"exact": 1.0, "f1": 1.0, "text": "blue"}, {"exact": 0.0, "f1": 0.0, "text": "banana"}
    (*_, row) = robustness({"long": {"1": good, "2": good}, "long, injected": {"1": good, "2": bad}}).splitlines()
    assert row.startswith("| long | 50.0 (0.0 to 100.0) | 50.0 (0.0 to 100.0) |")
    assert row.endswith("| 50.0 (0.0 to 100.0) |")


def test_another_order_shares_no_prefix(data):
    for case in cases(data, bm25, 3):
        other = reordered(case)
        assert sorted(map(str, other.passages)) == sorted(map(str, case.passages))
        assert other.passages[0] != case.passages[0]


def test_times_are_compared_question_by_question():
    measured = [
        ("1", "long, cold", 6.0),
        ("1", "voices, warm", 1.0),
        ("2", "long, cold", 9.0),
        ("2", "voices, warm", 3.0),
    ]
    rows = [
        {"id": case, "passages": 4, "situation": name, "first": value, "processor": value, "computed": 10}
        for case, name, value in measured
    ]
    assert "| long, cold | 10 | 7.50 | 7.50 | 4.5 (3.0 to 6.0) |" in times(rows, 4)


def test_a_run_continues_where_the_last_one_ended(data, tmp_path, monkeypatch):
    monkeypatch.setattr(voices, "REAL", ROOT / "examples" / "models")
    out = tmp_path / "results.jsonl"

    def run(count):
        command = [
            "voices",
            "top",
            "gold",
            "mean, scores",
            "--sets",
            "bm25-2",
            "--members",
            "ash",
            "--dtype",
            "float32",
        ]
        monkeypatch.setattr(sys, "argv", [*command, "--questions", str(count), "--data", str(data), "--out", str(out)])
        voices.main()
        return [json.loads(line) for line in out.read_text().splitlines()]

    first = run(1)
    assert [row["arm"] for row in first] == ["top", "gold", "mean, scores"]
    assert first[0]["text"] == first[1]["text"]
    second = run(2)
    assert second[:3] == first
    assert len(second) == 6


def test_signals_of_a_missing_passage():
    def answered(*confidences):
        return {str(place): {"confidence": value, "best": 1.0} for place, value in enumerate(confidences)}

    head, _, *rows = detection({"mean, scores": answered(0.9, 0.8), "mean, no gold": answered(0.1, 0.85)}).splitlines()
    assert head == "| AUROC of | mean (2) |"
    assert [row.split(" (")[0] for row in rows] == ["| best score | 0.50", "| confidence | 0.75"]
