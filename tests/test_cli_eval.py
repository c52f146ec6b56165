"""The command `gac eval` on the embedded members."""

from __future__ import annotations

import json

import pytest
from conftest import EMBEDDED
from questions import SYSTEM, write_questions
from typer.testing import CliRunner

from gac_core import Ensemble
from gac_core.cli import app


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Questions about passages that the embedded members can answer."""
    return write_questions(tmp_path_factory.mktemp("data") / "handbook.jsonl", 6)


def gac(*arguments):
    return CliRunner().invoke(app, ["eval", *map(str, arguments)])


def test_the_command(data, tmp_path):
    out, page, text = tmp_path / "results.jsonl", tmp_path / "report.html", tmp_path / "report.md"
    arguments = [*EMBEDDED[:2], "--dtype", "float32", "--data", data, "--limit", 4, "--instruction", SYSTEM]
    arguments += ["--metric", "exact", "--metric", "handbook=f1", "--weights", "1:2", "--threshold", 0.7, "--out", out]
    shown = gac(*arguments, "--report", page)
    assert shown.exit_code == 0, shown.output
    assert "handbook: 4 questions, score: f1; best member alone:" in shown.output
    assert "Do not ensemble" in shown.output or "No difference can be shown" in shown.output
    html = page.read_text()
    assert "<h2>Recommendation</h2>" in html
    assert "<td>every step, weights 1:2</td>" in html
    before = out.read_bytes()
    again = gac(*arguments, "--report", text, "--json")
    assert out.read_bytes() == before
    values = json.loads(again.stdout)
    assert [row["setting"]["label"] for row in values["tables"][0]["rows"]][:3] == [
        "ash",
        "birch",
        "every step, weights 1:2",
    ]
    assert values["recommendation"]["text"] in text.read_text().replace("\\", "")
    assert "| every step, weights 1:2 |" in text.read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--metric", "bleu"], "unknown metric 'bleu'"),
        (["--metric", "choice"], "the metric choice needs choices"),
        (["--form", "text"], "form must be one of 'chat', 'plain', 'raw', not 'text'"),
        (["--weights", "1:2:3"], "weights must be 2 numbers joined by colons"),
        (["--gate", "none"], "the gate 'none' is not a member"),
        (["--gate", "none", "--weights", "1:2"], "the gate 'none' is not a member"),
        (["--weights", "0:0"], "weights 0:0: one of them must be above 0"),
        (["--threshold", "1.5"], "threshold must be"),
        (["--combine", "sum"], "combine must be"),
        (["--gate-rule", "luck"], "gate_rule must be"),
        (["--metric", "other=exact"], "no data file is called 'other'; data files are: handbook"),
        (["--shots", "x"], "--shots must be a number or FILE=NUMBER"),
        (["--half", "third"], "half must be choose or report, not 'third'"),
        (["--report", "x.pdf"], "the report must be a .md or .html file"),
        (["--data", "none.jsonl"], "cannot read the questions 'none.jsonl'"),
    ],
)
def test_wrong_arguments_of_the_command(data, arguments, message, monkeypatch):
    def loaded(config):
        raise AssertionError("models were loaded before the arguments were checked")

    monkeypatch.setattr(Ensemble, "from_config", loaded)
    shown = gac(*EMBEDDED[:2], "--dtype", "float32", "--data", data, *arguments)
    assert shown.exit_code == 2
    assert message in shown.stderr


def test_wrong_answers_are_shown_with_the_accepted_ones(data, tmp_path):
    rows = [json.loads(line) | {"answer": "teal | granite"} for line in data.read_text().splitlines()[:2]]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    shown = gac(
        EMBEDDED[0], "--dtype", "float32", "--data", tmp_path / "odd.jsonl", "--report", tmp_path / "a" / "r.md"
    )
    assert shown.exit_code == 0, shown.output
    for text in (shown.output, (tmp_path / "a" / "r.md").read_text().replace("\\", "")):
        assert "There is one model, so that nothing was compared: give two models or more" in " ".join(text.split())
        assert "No setting had a right answer on these 2 questions" in " ".join(text.split())
        assert "accepted answers" in text
        assert "teal | granite" in text
