"""The calibrated probability that documents do not contain an answer: its fit, its report, its questions."""

import json
import math
import random
from dataclasses import replace

import pytest
from conftest import EMBEDDED
from typer.testing import CliRunner

from gac_core.calibration.absence import PENALTY, Sample, cross_validate, fit_absence, measure
from gac_core.calibration.document_questions import PROMPT, DocumentQuestion, check_form, read_document_questions
from gac_core.cli import app
from gac_core.doubt import FEATURES, AbsenceCalibration, Doubt
from gac_core.evaluation.errors import EvaluationError
from gac_core.sampling import SamplingParams
from gac_core.voices import Document


def samples(count=60, sharp=4.0):
    """Answers of which the absent ones tend to a smaller share and lift, with noise."""
    noise = random.Random(5)
    found = []
    for number in range(count):
        for absent in (False, True):
            signal = noise.gauss(-sharp / 2 if absent else sharp / 2, 1.0)
            doubt = Doubt(
                agreement=noise.random(), entropy=1.0, share=1 / (1 + math.exp(-signal)), lift=signal, logprob=-1.0
            )
            found.append(Sample(number, doubt, absent))
    return found


def test_the_fit_is_the_optimum_of_the_penalised_likelihood():
    found = samples(sharp=1.0)
    fitted = fit_absence(found)
    # Entropy and logprob do not vary.
    assert list(fitted.features) == ["share", "agreement", "lift"]
    assert fitted.questions == 60
    residuals = [fitted.probability(sample.doubt) - sample.absent for sample in found]
    assert sum(residuals) == pytest.approx(0, abs=1e-5)
    for name, scale in fitted.features.items():
        values = [(getattr(sample.doubt, name) - scale.mean) / scale.deviation for sample in found]
        assert sum(values) == pytest.approx(0, abs=1e-9)
        assert sum(value * value for value in values) == pytest.approx(len(values))
        slope = sum(value * residual for value, residual in zip(values, residuals, strict=True))
        assert slope + PENALTY * scale.coefficient == pytest.approx(0, abs=1e-5)


def test_features_that_an_answer_lacks_are_left_out():
    found = [*samples(), Sample(60, Doubt(share=0.5, agreement=0.5, entropy=0.5), True)]
    assert list(fit_absence(found).features) == ["share", "agreement", "entropy"]
    with pytest.raises(EvaluationError, match="both kinds are needed"):
        fit_absence([sample for sample in found if sample.absent])
    same = [Sample(0, Doubt(share=1.0), absent) for absent in (True, False)]
    with pytest.raises(EvaluationError, match="the same for all questions"):
        fit_absence(same)
    assert set(FEATURES) <= set(Doubt.__dataclass_fields__)


def test_the_report_is_of_questions_that_were_held_out():
    sharp, blunt = cross_validate(samples(sharp=6.0)), cross_validate(samples(sharp=0.0))
    assert sharp.auroc > 0.98
    assert 0.3 < blunt.auroc < 0.65
    assert sharp.brier < 0.05 < 0.2 < blunt.brier
    assert (sharp.answers, sharp.base_rate, sharp.citation_accuracy) == (120, 0.5, None)
    assert 0 <= sharp.ece < 0.1


def test_questions_are_read_and_lose_their_answering_document(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [
        {
            "question": "Who {document}?",
            "documents": [{"text": text, "score": 2.0} for text in ("a", "b\u2028", "b\u2028")],
            "answer_in": 1,
        },
        {"question": "Where?", "documents": ["c"], "answer_in": 0},
        {"question": "When?", "documents": ["d"], "answer_in": None},
    ]
    path.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n", encoding="utf-8")
    first, second, third = read_document_questions(path)
    assert first.documents[1] == Document("b\u2028", score=2.0)
    present, absent = first.variants()
    assert (present.documents, present.answer_in) == ((first.documents[1],), 0)
    assert (absent.documents, absent.answer_in) == (first.documents[:1], None)
    assert (second.variants(), third.variants()) == ((second,), (third,))
    longer = replace(first, documents=tuple(map(Document, "abcd")), answer_in=2)
    present, absent = longer.variants()
    assert ("".join(each.text for each in present.documents), present.answer_in) == ("abc", 2)
    assert "".join(each.text for each in absent.documents) == "abd"
    assert len(read_document_questions(path, 2)) == 2
    first = replace(first, documents=first.documents[:1])
    prompt = first.prompt(PROMPT, chat=False)
    assert prompt.with_document("TEXT").startswith("Text: TEXT\n\nAnswer")
    assert "Question: Who {document}?" in prompt.with_document("TEXT")
    assert "TEXT" in first.prompt(PROMPT, chat=True).with_document("TEXT").turns[0].content


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ('{"question": "a"}', "line 1 of .*: it must be an object with the keys question, documents, answer_in"),
        ('{"question": " ", "documents": ["a"], "answer_in": 0}', "question must be a text"),
        ('{"question": "a", "documents": [], "answer_in": 0}', "documents must be a list of texts"),
        ('{"question": "a", "documents": [{"text": "b"}], "answer_in": 0}', "an object with text and score"),
        ('{"question": "a", "documents": ["b"], "answer_in": 1}', "an index from 0 to 0, not 1"),
        ('{"question": "a", "documents": ["b"], "answer_in": true}', "not True"),
        ('{"question": "a", "documents": ["b", {"text": "c", "score": 1}], "answer_in": 0}', "line 1 .*no score"),
        ("[" * 100_000, "line 1"),
        ("x", "line 1"),
        ("", "has no questions"),
    ],
)
def test_wrong_questions_are_named(tmp_path, line, message):
    path = tmp_path / "questions.jsonl"
    path.write_text(line)
    with pytest.raises(EvaluationError, match=message):
        read_document_questions(path)


def test_equal_questions_are_in_one_fold(ensemble):
    asked = [DocumentQuestion(text, (Document("d"), Document("e")), place) for text, place in
             (("Who?", None), ("Where?", 0), ("Who?", 1))]  # fmt: skip
    found = measure(ensemble, asked, PROMPT, False, SamplingParams(max_tokens=1), lambda *_: None)
    assert [(each.question, each.absent) for each in found] == [
        (0, True), (1, False), (1, True), (0, False), (0, True),
    ]  # fmt: skip


def test_prompts_need_both_places():
    check_form(PROMPT)
    with pytest.raises(EvaluationError, match=r"contain \{question\} once, not 0 times"):
        check_form("{document}")


def test_the_command_writes_a_calibration_and_reports_it(tmp_path):
    places = ("Halkus", "Torno", "Vell")
    texts = [f"The bridge is in {place}." for place in places]
    lines = [{"question": f"Where is bridge {n}?", "documents": texts, "answer_in": n % 3} for n in range(5)]
    lines.append({"question": "Who?", "documents": texts[:1], "answer_in": None})
    data, out = tmp_path / "q.jsonl", tmp_path / "new" / "absence.json"
    data.write_text("\n".join(map(json.dumps, lines)))
    options = ["--data", data, "--out", out, "--max-tokens", "2", "--folds", "2", "--dtype", "float32"]
    result = CliRunner().invoke(app, ["calibrate-documents", *EMBEDDED[:2], *map(str, options)])
    assert result.exit_code == 0, result.output
    assert "11 answers to 6 questions; the documents of 55% lack the answer." in result.output
    assert "AUROC" in result.output
    assert "Warning: 11 answers are few" in result.output
    calibration = AbsenceCalibration.of(out)
    assert calibration.questions == 6
    assert {"share", "entropy", "lift", "logprob"} <= set(calibration.features)
    prompt = tmp_path / "prompt.txt"
    prompt.write_text("{question}")
    wrong = CliRunner().invoke(
        app, ["calibrate-documents", *EMBEDDED[:2], "--data", str(data), "--prompt", str(prompt)]
    )
    assert wrong.exit_code == 2
    assert "must contain {document} once, not 0 times" in wrong.output
