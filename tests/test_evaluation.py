"""Questions, metrics, prompts and intervals of evaluations."""

from __future__ import annotations

import json
import sys

import numpy as np
import pytest
from conftest import SHARED

from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.header import Header
from gac_core.evaluation.metrics import METRICS, default_metric, metric_named
from gac_core.evaluation.prompts import PromptForm, with_examples
from gac_core.evaluation.questions import Question, halves, read_questions, read_sets
from gac_core.evaluation.recommend import recommend
from gac_core.evaluation.results import Answer, Results, read_lines
from gac_core.evaluation.settings import Setting, alone, every_step, parse_weights, self_consistency, thresholded
from gac_core.evaluation.statistics import compare, mean_interval, questions_needed

ROW = {"question": "Who built it?", "answers": ["Edith Crane", "Crane"]}
CHOICE = {"question": "Which?", "choices": ["iron", "oak"], "answer": "oak", "id": "c"}


@pytest.fixture
def write(tmp_path):
    """Writes a data file and returns its path; strings are written as they are."""

    def written(*rows, name="data.jsonl"):
        path = tmp_path / name
        path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows), encoding="utf-8")
        return path

    return written


def test_questions_are_read(write):
    shot = {"split": "shots", "question": "a", "answer": "b", "context": "c", "domain": "d"}
    read = read_questions(write(shot, "", {**ROW, "_source": 1, "split": "test"}, CHOICE))
    assert [question.id for question in read.questions] == ["3", "c"]
    assert read.questions[0] == Question("3", "Who built it?", ("Edith Crane", "Crane"), task="data")
    assert read.questions[1].letters == ("B",)
    assert read.shots == (Question("1", "a", ("b",), contexts=("c",), domain="d", task="data"),)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([ROW, "{"], "data.jsonl, line 2: not valid JSON"),
        ([ROW, "[1]"], "line 2: it must be an object with question and answers, not an array"),
        ([], "has no questions"),
        ([{**ROW, "split": "shots"}], "has no questions"),
        ([{"question": "x"}], "line 1: it has no answers; give answers"),
        ([{"question": "x", "answers": []}], "line 1: it has no answers"),
        ([{"question": " ", "answer": "x"}], "line 1: question must be a non-empty string"),
        ([{**ROW, "answer": "x"}], "line 1: it has both answers and answer"),
        ([{**ROW, "answers": "Crane"}], "line 1: answers must be a list of strings, not 'Crane'"),
        ([{**ROW, "answers": [1]}], "line 1: each of answers must be a non-empty string, not 1"),
        ([{**ROW, "anwser": "x"}], "line 1: unknown key 'anwser'"),
        ([{**ROW, "id": True}], "line 1: id must be a non-empty string or an integer, not True"),
        ([{**ROW, "split": 1}], "line 1: split must be a string, not 1"),
        ([{**ROW, "id": "\ud800"}], "line 1: id contains the lone surrogate"),
        ([{**CHOICE, "answer": "stone"}], "line 1: with choices the answer must be the text of one of them"),
        ([{**CHOICE, "choices": ["x"] * 27, "answer": "x"}], "line 1: it has 27 choices; at most 26"),
        ([{**ROW, "id": 2}, ROW], "two questions have the id '2'"),
    ],
)
def test_wrong_lines_are_named(write, rows, message):
    with pytest.raises(EvaluationError, match=message):
        read_questions(write(*rows))


def test_wrong_files_are_named(write, tmp_path):
    (tmp_path / "latin.jsonl").write_bytes(b'{"question": "\xe9"}')
    with pytest.raises(EvaluationError, match=r"latin.jsonl: it is not UTF-8 \(byte 14\)"):
        read_questions(tmp_path / "latin.jsonl")
    with pytest.raises(EvaluationError, match=r"cannot read the questions '.*none.jsonl': No such file"):
        read_questions(tmp_path / "none.jsonl")
    (tmp_path / "other").mkdir()
    with pytest.raises(EvaluationError, match="two data files are called 'data'"):
        read_sets([write(ROW), write(ROW, name="other/data.jsonl")])


@pytest.mark.shared
@pytest.mark.parametrize(("name", "metric", "count"), [("mmlu", "choice", 1200), ("triviaqa", "exact", 800)])
def test_benchmarks_are_read_as_they_are(name, metric, count):
    questions = read_questions(SHARED / "datasets" / "benchmarks" / f"{name}.jsonl")
    assert (len(questions.questions), default_metric(questions)) == (count, metric)
    task, examples = with_examples(questions, PromptForm("plain"))
    assert all(len(examples.of(question)) == 5 for question in task.questions)


def test_samples_are_nested_and_halves_disjoint(write):
    questions = read_questions(write(*({**ROW, "question": str(number)} for number in range(200))))
    small, large = (questions.limited(limit).questions for limit in (20, 60))
    assert (len(small), len(large)) == (20, 60)
    assert set(small) < set(large)
    assert list(large) == [each for each in questions.questions if each in large]
    assert questions.limited(500) == questions
    choose, report = halves(questions.questions)
    assert not {each.id for each in choose} & {each.id for each in report}
    assert len(choose) + len(report) == 200
    assert 70 < len(choose) < 130
    assert list(questions.limited(half="report").questions) == report


TEXT = Question("1", "Who?", ("The Edith Crane!", "Crane"), task="t")
LETTER = Question("2", "Which?", ("oak",), ("iron", "oak", "Basalt"), task="t")
SOLUTION = Question("3", "How many?", ("2 * 500 = <<2*500=1000>>1000\n#### 1,000",), task="t")


@pytest.mark.parametrize(
    ("metric", "question", "text", "score"),
    [
        ("exact", TEXT, " edith  crane", 1),
        ("exact", TEXT, "It was Crane", 0),
        ("contains", TEXT, "It was the Crane.", 1),
        ("contains", TEXT, "Cranes", 0),
        ("f1", TEXT, "Edith Jones", 0.5),
        ("f1", TEXT, "crane", 1),
        ("f1", TEXT, "", 0),
        ("choice", LETTER, " B", 1),
        ("choice", LETTER, "(B) oak", 1),
        ("choice", LETTER, "The answer is B.", 1),
        ("choice", LETTER, "A", 0),
        ("choice", LETTER, "Oak.", 1),
        ("choice", LETTER, "Basalt", 0),
        ("choice", LETTER, "", 0),
        ("number", SOLUTION, "So 3 + 997 = 1000.", 1),
        ("number", SOLUTION, "1000\n#### 999 of 1000", 0),
        ("number", SOLUTION, "#### $1,000.00 for 3", 1),
        ("number", SOLUTION, "none", 0),
        (r"regex:is (\w+)", TEXT, "the answer is crane, is it", 1),
        (r"regex:\d+", TEXT, "crane", 0),
    ],
)
def test_metrics(metric, question, text, score):
    rule = metric_named(metric)
    assert rule.name == metric
    rule.check(question)
    assert rule.score(text, question) == score


def test_wrong_metrics_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_metrics.py").write_text(
        "def length(text, question): return min(len(text), 10) / 10\n"
        "def fails(text, question): return 1 / 0\n"
        "def nan(text, question): return float('nan')\n"
        "def words(text, question): return 'good'\n"
        "number = 3\n"
    )
    path = sys.path.copy()
    assert metric_named("own_metrics:length").score("12345", TEXT) == 0.5
    assert metric_named("own_metrics.py:length").score("12345", TEXT) == 0.5
    assert sys.path == path
    with pytest.raises(EvaluationError, match="metric 'own_metrics:fails' on question '1' of 't' raised ZeroDivision"):
        metric_named("own_metrics:fails").score("x", TEXT)
    for name in ("nan", "words"):
        with pytest.raises(EvaluationError, match=f"'own_metrics:{name}' on question '1' .*must be a number from 0 to"):
            metric_named(f"own_metrics:{name}").score("x", TEXT)
    for name, message in {
        "bleu": "unknown metric 'bleu'; known are exact, f1",
        "regex:(": r"the pattern of the metric 'regex:\(' is not valid",
        "regex:": "unknown metric 'regex:'",
        "own_metrics:none": "cannot load the metric 'own_metrics:none': AttributeError",
        "no_module:f": "cannot load the metric 'no_module:f': ModuleNotFoundError",
        "own_metrics:number": "the metric 'own_metrics:number' is not a function",
    }.items():
        with pytest.raises(EvaluationError, match=message):
            metric_named(name)
    with pytest.raises(EvaluationError, match="the metric choice needs choices, which question '1' of 't' has not"):
        METRICS["choice"].check(TEXT)
    with pytest.raises(EvaluationError, match="the metric number needs a number in each answer, not 'The Edith"):
        METRICS["number"].check(TEXT)


def test_prompts_of_each_form():
    passage = Question("1", "Who?", ("Ada",), contexts=("Ada met Bob.", "Cleo left."), task="t")
    plain = PromptForm("plain")
    assert plain.prompt(TEXT, [passage]).prompt == (
        "Passage: Ada met Bob.\nPassage: Cleo left.\nQuestion: Who?\nAnswer: Ada\n\nQuestion: Who?\nAnswer:"
    )
    assert plain.prompt(TEXT).stop == ("\n",)
    letters = plain.prompt(LETTER, [LETTER])
    asked = "Question: Which?\nA. iron\nB. oak\nC. Basalt\nAnswer:"
    assert letters.prompt == f"{asked} B\n\n{asked}"
    assert (letters.stop, letters.keeps_stop) == (("A", "B", "C"), True)
    solution = PromptForm("plain", solutions=True, instruction="Think.").prompt(SOLUTION, [SOLUTION])
    assert solution.prompt.startswith("Think.\n\nQuestion: How many?\nAnswer: 2 * 500 = 1000\n#### 1,000\n\n")
    assert solution.stop == ("\n\n", "\nQuestion:")
    chat = PromptForm("chat").prompt(passage, [LETTER])
    assert [message["role"] for message in chat.prompt] == ["system", "user", "assistant", "user"]
    assert chat.prompt[2]["content"] == "B"
    assert chat.prompt[3]["content"] == "Passages:\n\nAda met Bob.\n\nCleo left.\n\nQuestion: Who?"
    assert [m["role"] for m in PromptForm("chat", instruction="").prompt(TEXT).prompt] == ["user"]
    raw = PromptForm("raw", stop=("\ndef ",), max_tokens=9).prompt(TEXT)
    assert (raw.prompt, raw.stop, raw.max_tokens) == ("Who?", ("\ndef ",), 9)
    assert PromptForm("plain", stop=(".",)).prompt(LETTER).stop == (".",)
    with pytest.raises(EvaluationError, match="the raw form has no examples, not shots=1"):
        PromptForm("raw", shots=1)
    for wrong in ({"kind": "text"}, {"shots": -1}, {"max_tokens": 0}):
        with pytest.raises(EvaluationError, match=next(iter(wrong)).replace("kind", "form")):
            PromptForm(**wrong)


def test_examples_are_those_of_the_domain(write):
    rows = [{**ROW, "id": f"{domain}{place}", "domain": domain} for domain in "xy" for place in range(3)]
    path = write(*rows)
    task, examples = with_examples(read_questions(path), PromptForm(shots=2))
    assert [question.id for question in task.questions] == ["x2", "y2"]
    assert [shot.id for shot in examples.of(task.questions[1])] == ["y0", "y1"]
    assert with_examples(read_questions(path), PromptForm())[1].of(task.questions[0]) == ()
    with pytest.raises(EvaluationError, match="no questions left after 3 examples"):
        with_examples(read_questions(path), PromptForm(shots=3))
    path = write({**rows[0], "split": "shots"}, *rows[1:])
    with pytest.raises(EvaluationError, match="has 0 examples of the domain 'y'"):
        with_examples(read_questions(path), PromptForm(shots=1))


def test_settings_have_labels_and_are_checked():
    names = ("a", "b")
    assert alone("a").alone == "a"
    assert every_step(names, (1, 2.5), "geometric").label == "every step, geometric, weights 1:2.5"
    gated = thresholded(names, "b", 0.7, (1, 2), gate_rule="margin")
    assert (gated.label, gated.is_ensemble) == ("gate b at 0.7, margin, weights 1:2", True)
    assert gated.overrides()["weights"] == {"a": 1, "b": 2}
    assert self_consistency("a", 5).label == "5 samples of a"
    assert parse_weights("0:2", names) == (0.0, 2.0)
    with pytest.raises(EvaluationError, match="weights 0:0: one of them must be above 0"):
        parse_weights("0:0", names)
    for text in ("1", "-1:2", "a:b", "1:2:3"):
        with pytest.raises(EvaluationError, match="weights must be 2 numbers joined by colons"):
            parse_weights(text, names)
    with pytest.raises(EvaluationError, match="samples=3 need a temperature above 0"):
        Setting("x", samples=3)
    with pytest.raises(EvaluationError, match="has a threshold and no gate"):
        Setting("x", threshold=0.5)


def test_intervals_of_hand_computed_values():
    assert mean_interval([1.0, 1.0, 1.0]).low == 1.0
    ours, theirs = [1.0] * 12 + [0.0] * 4, [1.0] * 4 + [0.0] * 12
    found = compare(ours, theirs)
    assert (found.difference.value, found.relative.value) == (0.5, 2.0)
    # The difference is 1 for half of the questions: the binomial quantiles of 16 draws are 4 and 12.
    assert (found.difference.low, found.difference.high) == pytest.approx((4 / 16, 12 / 16))
    assert compare(ours, ours).difference == compare(theirs, theirs).difference
    assert compare(ours, ours).difference.high == 0
    assert compare([1.0, 0.0], [0.0, 0.0]).relative is None
    # Each task is resampled by itself: equal values within tasks have no variance.
    strata = mean_interval([0.0, 0.0, 1.0, 1.0], ["a", "a", "b", "b"])
    assert (strata.low, strata.high) == (0.5, 0.5)
    # s = 0.5164, d = 0.5: (2.8 * 0.5164 / 0.5) ** 2 = 8.36
    assert questions_needed(ours, theirs) == 9
    assert questions_needed(ours, ours) is None


def test_intervals_are_those_of_scipy():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(1)
    ours, theirs = rng.random(60), rng.random(60)
    expected = stats.bootstrap(
        (ours, theirs), lambda a, b, axis: (a - b).mean(axis), paired=True, method="percentile", rng=rng
    ).confidence_interval
    found = compare(list(ours), list(theirs)).difference
    assert (found.low, found.high) == pytest.approx((expected.low, expected.high), abs=0.006)


@pytest.mark.parametrize(
    ("metric", "text", "answer", "score"),
    [
        ("exact", "", "(A)", 0),
        ("exact", "(A)", "(A)", 1),
        ("exact", "A", "(A)", 1),
        ("exact", ") ]", "] )", 0),
        ("f1", "the", "(A)", 0),
        ("contains", "so it is (A)", "(A)", 1),
        ("contains", "so it is (B)", "(A)", 0),
        ("exact", "cafe\u0301", "caf\u00e9", 1),
        ("number", "in 2010-2015", "2015", 1),
        ("number", "\u22125", "-5", 1),
    ],
)
def test_answers_of_articles_punctuation_and_signs(metric, text, answer, score):
    assert METRICS[metric].score(text, Question("1", "Which?", (answer,))) == score


def test_the_text_of_a_choice_goes_before_letters_in_it():
    question = Question("1", "Which?", ("A cat",), ("a dog", "a fish", "A cat"))
    votes = [METRICS["choice"].vote(text, question) for text in ("A cat", "ANSWER: B", " A.", "(C) fish")]
    assert votes == ["C", "B", "A", "C"]


def test_other_files_are_not_changed(tmp_path):
    path = tmp_path / "notes.txt"
    path.write_text("one\ntwo", encoding="utf-8")
    with pytest.raises(EvaluationError, match="line 1: it is damaged"):
        read_lines(path)
    assert path.read_text(encoding="utf-8") == "one\ntwo"


def test_few_questions_that_differ_show_nothing():
    """Of five questions that differ all favour the ensemble: a sign test has p = 0.06, the interval excludes 0."""
    settings = [alone("a"), every_step(["a", "b"])]
    verdicts = []
    for gained in (5, 6):
        results = Results(Header({}, [{"name": "a"}], {}, {}, {"t": ["exact"]}))
        for place in range(20):
            for setting, score in zip(settings, (0.0, float(place < gained)), strict=True):
                results.add([Answer(setting.label, "t", str(place), "", {"exact": score})])
        verdicts.append(recommend(results, settings).verdict)
        part = {("t", "0"), ("t", "1")}
        assert recommend(results, settings, keys=part).questions == 2
    assert verdicts == ["undecided", "ensemble"]
