"""The experiments' pure functions: cuts of hand-made tokenizers, word lists, the first wrong token of an answer."""

from __future__ import annotations

import re
from collections import Counter

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from benchmarks.experiments import calibration, grid, outputs, thresholds, vocabulary, weights, words
from benchmarks.experiments.answers import TokenAnswer
from benchmarks.experiments.data import DATASETS
from benchmarks.experiments.domains import GROUPS, domain_of
from benchmarks.experiments.grid import Answered
from benchmarks.experiments.snowballing_report import TaskAnswers, best_member, report
from benchmarks.experiments.wrong_tokens import Verdict, can_become, judge, majority, most_confident
from benchmarks.trio import NAMES
from gac_core.evaluation.header import Header
from gac_core.evaluation.questions import read_questions
from gac_core.evaluation.results import Answer, Results
from gac_core.evaluation.settings import alone, every_step, thresholded
from gac_core.inspection import pieces_of, share_cut_alike
from gac_core.tokenization.tokenizer import MemberTokenizer


def made(name, *merges):
    """A byte-level BPE of all bytes and these merges, such as ``"ab c"``."""
    pairs = [tuple(merge.split()) for merge in merges]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate([*alphabet, *("".join(pair) for pair in pairs)])}
    tokenizer = Tokenizer(models.BPE(vocab, pairs))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return MemberTokenizer(PreTrainedTokenizerFast(tokenizer_object=tokenizer), name)


def test_words_are_cut_alike_where_all_tokens_are_the_same():
    texts = [" ab", " abc", " x"]
    first = pieces_of(made("first", "a b", "ab c"), texts)
    second = pieces_of(made("second", "a b"), texts)
    assert first == [(b" ", b"ab"), (b" ", b"abc"), (b" ", b"x")]
    assert second == [(b" ", b"ab"), (b" ", b"ab", b"c"), (b" ", b"x")]
    assert share_cut_alike(first, second) == pytest.approx(2 / 3)
    assert share_cut_alike(first, first) == 1


def test_a_text_that_is_not_preserved_is_never_cut_alike():
    assert share_cut_alike([None, (b"a",)], [None, (b"a",)]) == 0.5
    assert share_cut_alike([], []) == 0


def test_every_pair_is_compared_in_every_category():
    pieces = {
        "a": {"x": [(b"1",), (b"2",)], "y": [(b"3",)]},
        "b": {"x": [(b"1",), (b"2", b"")], "y": [(b"3",)]},
        "c": {"x": [(b"0",), (b"2",)], "y": [None]},
    }
    pairs = vocabulary.compare(pieces)
    assert {pair.name: dict(pair.shares) for pair in pairs} == {
        "a + b": {"x": 0.5, "y": 1.0},
        "a + c": {"x": 0.5, "y": 0.0},
        "b + c": {"x": 0.0, "y": 0.0},
    }
    assert vocabulary.by_closeness(pairs, "x") == ["a", "b", "c"]
    assert "| x | 2 | 50.0 | 0 to 50 | 50.0 |" in vocabulary.table(pairs, ["a + c"], {"x": 2, "y": 1})


def test_plots_are_small_and_the_same_each_time(tmp_path):
    pairs = [vocabulary.Pair("a", "b", {"x": 0.5, "y": 1.0}), vocabulary.Pair("a", "c", {"x": 0.0, "y": 0.25})]
    pairs.append(vocabulary.Pair("b", "c", {"x": 0.0, "y": 0.25}))
    for name in ("one", "two"):
        vocabulary.heat_map(pairs, "x", tmp_path / name / "heat.svg")
        vocabulary.range_plot(pairs, ["a + b"], tmp_path / name / "range.svg")
    for plot in ("heat.svg", "range.svg"):
        text = (tmp_path / "one" / plot).read_text()
        assert text == (tmp_path / "two" / plot).read_text()
        assert len(text) < 80_000
    assert "a + b" in text


def test_word_lists():
    texts = ["Alkanes burn; the enthalpy of HCl is low.", "the isotope"]
    assert words.domain_words(texts, ["the", "of", "is", "low"]) == ["burn", "enthalpy", "isotope"]
    code = words.code_texts(["def area(w, h):\n    return w * h\n"])
    assert code["identifiers"] == [" area", " h", " w"]
    assert code["operators"] == [" (", " )", " *", " ,", " :"]
    assert code["indented line starts"] == ["\n    return"]
    assert len(set(words.rare_words(100)) - set(words.common_words(50_000))) == 100


@pytest.mark.parametrize(
    ("text", "answer", "possible"),
    [
        ("", "Ada", True),
        (" A", "Ada Lovelace", True),
        (" Ada", "Ada Lovelace", True),
        (" The Ada L", "Ada Lovelace", True),
        (" th", "Ada", True),
        (" ada, lovelace.", "Ada Lovelace", True),
        (" Ada the", "Ada", True),
        (" Ada Lovelace", "Ada", False),
        (" Adam", "Ada", False),
        (" Ad a", "Ada", False),
        (" B", "Ada", False),
        (" Anti-sem", "Antisemitism", True),
    ],
)
def test_an_answer_can_be_reached_or_not(text, answer, possible):
    assert can_become(text, answer) == possible


@pytest.mark.parametrize(
    ("tokens", "course", "place"),
    [
        ([b" Ada", b" Love", b"lace", b"\n"], "right", None),
        ([b" The", b" Ada", b" Lovelace", b".\nQuestion"], "right", None),
        ([b" Ada", b"\n"], "ends early", None),
        ([], "ends early", None),
        ([b" Ada", b" Lovelace", b" wrote", b" it"], "goes on", 2),
        ([b" Ada", b" Byron", b"\n"], "wrong turn", 1),
        ([b" It", b" is", b" Ada", b" Lovelace", b"\n"], "wrong turn", 0),
        ([b" Countess\xc3", b"\xa9", b"\n"], "wrong turn", 0),
        ([b" \xc3", b"\x89va", b"\n"], "right", None),
    ],
)
def test_the_first_wrong_token(tokens, course, place):
    assert judge(tokens, ["Ada Lovelace", "Éva"]) == Verdict(course, place)


def test_choices_among_complete_answers():
    confidences = {"a": 0.2, "b": 0.9, "c": 0.3}
    assert majority({"a": " The Nile.", "b": " Rhine", "c": "nile"}, confidences) == "c"
    assert majority({"a": "Nile", "b": "Rhine", "c": "Elbe"}, confidences) == "b"
    assert most_confident(confidences) == "b"


def told(id, setting, text, beginning="", confidence=0.5, right=("Nile",)):
    """An answer whose tokens are its words."""
    tokens = tuple(token.encode().hex() for token in re.findall(r" ?\w+", text.removeprefix(beginning)))
    contains = any(each in text for each in right)
    return TokenAnswer("rivers", id, setting, beginning, text, tokens, confidence, text.strip() in right, contains)


def test_the_report_counts_courses_first_tokens_and_repairs():
    accepted = {"1": ["Nile"], "2": ["Nile"], "3": ["Nile"]}
    free = {
        "a": [told("1", "a", " Nile"), told("2", "a", " River Nile"), told("3", "a", " Elbe")],
        "b": [told("1", "b", " Rhine"), told("2", "b", " Rhine"), told("3", "b", " Nile", confidence=0.9)],
        "both": [told("1", "both", " Rhine"), told("2", "both", " Nile"), told("3", "both", " Elbe")],
    }
    begun = {
        "a": [told("2", "a", " River Nile", " River"), told("3", "a", " Elbe", " Elbe")],
        "both": [told("2", "both", " River Elbe", " River"), told("3", "both", " Elbe or Nile", " Elbe")],
    }
    answers = TaskAnswers("rivers", accepted, ["a", "b"], best_member({"a": free["a"], "b": free["b"]}), free, begun)
    assert answers.best == "a"
    lines = report(answers).splitlines()
    assert "| a | 33.3" in lines[4]
    assert "| a | 1 | 0 | 0 | 1 | 1 | 2 |" in lines
    assert "| both | 1 | 0 | 0 | 0 | 2 | 2 |" in lines
    # Of the two questions that a begins wrongly, both begins one otherwise, and rightly; it loses the third.
    assert "| both | 1 | 1 | 1 | 1 | 1 | 1 |" in lines
    assert "| most confident complete answer | 1 | 1 | 1 | 2 | 0 | 0 |" in lines
    assert [line[:40] for line in lines if "repaired" not in line and "of 2" in line and "wrong" not in line] == [
        "| a | 1 of 2 | 50.0 (0.0 to 100.0) |  |",
        "| both | 1 of 2 | 50.0 (0.0 to 100.0) | ",
    ]


def test_the_grid_of_weights_has_every_member_alone_and_equal_weights():
    grid = weights.simplex(3, 2)
    assert set(grid) == {(1, 1, 1), (1, 0, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0), (1, 0, 1), (0, 1, 1)}
    assert len(weights.simplex(3, 4)) == 16
    for each in grid:
        shares = tuple(weight / sum(each) for weight in each)
        assert weights.shares_of(Answered(weights.setting_of(each), [])) == shares
    assert weights.weights_of(thresholded(NAMES, "qwen", 0.5, (1, 1, 1))) is None
    assert weights.weights_of(every_step(NAMES, (1, 1, 1), "geometric")) is None


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """A results file: 12 questions of two tasks, each member alone, every step and a threshold."""
    file = Results(Header({}, [], {}, {}, {}), tmp_path_factory.mktemp("results") / "results.jsonl")
    gated = thresholded(NAMES, "qwen", 0.5, (1, 1, 1))
    for setting, right in [(alone(name), 4) for name in NAMES] + [(every_step(NAMES, (1, 1, 1)), 8), (gated, 7)]:
        file.use(setting)
        ensembled = 4 if setting.threshold is None else 1 if setting == gated else 0
        file.add(
            [
                Answer(setting.label, "ab"[i % 2], str(i), str(i < right), {"exact": float(i < right)}, 4, ensembled)
                for i in range(12)
            ]
        )
    file.add([Answer(alone("qwen").label, "a", "more", "", {"exact": 1.0}, 4)])
    return file.path


def test_tables_of_weights_and_thresholds(results, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["weights", str(results), "--out", str(tmp_path)])
    weights.main()
    shown = capsys.readouterr().out
    assert "| smollm2:gemma3:qwen | a (6) | b (6) | pooled (12) | against smollm2 |" in shown
    assert re.search(r"\| 1:1:1 \| 66\.7 \| 66\.7 \| 66\.7 \([\d. to]+\) \| \+33\.3 ", shown)
    assert "0.5" not in shown
    monkeypatch.setattr("sys.argv", ["thresholds", str(results), "--weights", "1:1:1", "--out", str(tmp_path)])
    thresholds.main()
    shown = capsys.readouterr().out
    assert re.search(r"\| gate qwen at 0.5, weights 1:1:1 \| 58.3 .*\| -8.3 .*\| 92 \| 25 \| 0.0 \|", shown)
    assert {path.name for path in tmp_path.iterdir()} == {"weights.svg", "thresholds.svg"}


def test_weights_chosen_on_one_half_are_reported_on_the_other(results):
    answered = grid.read_answers(results, lambda setting: weights.weights_of(setting) is not None)
    counts = Counter(answer.half for answer in answered[0].answers)
    sentence = weights.chosen_on_half(answered)
    assert f"Chosen on {counts['choose']} questions: every step, weights 1:1:1" in sentence
    assert f"On the other {counts['report']}:" in sentence
    one_half = [each.only(lambda answer: answer.half == "choose") for each in answered]
    assert weights.chosen_on_half(one_half) == ""
    with pytest.raises(SystemExit, match="no question"):
        grid.read_answers(results, lambda setting: False)


def answer(id, confidence, score, task="a"):
    return Answer("s", task, id, "", {"exact": score}, confidence=confidence)


def test_calibration_error_is_the_mean_distance_of_confidence_and_accuracy():
    # Two bins of two answers: 0.165 against 0.5, and 0.965 against 0.5.
    answers = [answer("1", 0.14, 0.0), answer("2", 0.19, 1.0), answer("3", 0.95, 1.0), answer("4", 0.98, 0.0)]
    assert calibration.cell(answers) == "40.0 (+6.5)"
    groups = calibration.by_domain([*answers, answer("5", None, 0.0)], {("a", each.id): "x" for each in answers})
    assert [(name, len(own)) for name, own in groups.items()] == [("all", 4), ("x", 4)]


def test_few_questions_give_an_error_even_to_a_calibrated_model():
    assert calibration.noise([0.5] * 10) > 2 * calibration.noise([0.5] * 200) > 0


@pytest.mark.shared
def test_every_subject_of_mmlu_has_a_domain():
    questions = read_questions(DATASETS / "benchmarks" / "mmlu.jsonl").questions
    assert {domain_of("mmlu", each.domain) for each in questions} == set(GROUPS)
    assert {subject for group in GROUPS.values() for subject in group} == {each.domain for each in questions}
    assert domain_of("nq", "") == "nq"


def test_choices_among_complete_answers_are_scored(results, monkeypatch, capsys):
    members = [
        Answered(alone(name), [Answer(name, "a", "1", text, {"exact": float(text == "x")}, confidence=confidence)])
        for name, text, confidence in (("smollm2", "y", 0.9), ("gemma3", "x", 0.2), ("qwen", "x", 0.1))
    ]
    assert [own[0] for own in outputs.chosen_scores(members).values()] == [1.0, 0.0, 1.0]
    monkeypatch.setattr("sys.argv", ["outputs", str(results)])
    outputs.main()
    shown = capsys.readouterr().out
    assert "| answered by | a (6) | b (6) | pooled (12) | against smollm2 |" in shown
    assert re.search(r"\| every step, weights 1:1:1 \| 66\.7 \| 66\.7 \|", shown)
