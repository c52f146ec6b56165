"""The examples on real models (`examples/real`): what they do on small real models, and that their tasks are right."""

from __future__ import annotations

import importlib
import random
import subprocess
import sys

import pytest
from conftest import REAL, ROOT

from gac_core import AnswerError

EXAMPLES = ROOT / "examples" / "real"
NAMES = sorted(path.stem for path in EXAMPLES.glob("*_langchain.py")) + sorted(
    path.stem for path in EXAMPLES.glob("*_llamaindex.py")
)
MEMBERS = ("smollm2", "qwen")
SETTINGS = {"weights": [1, 4], "gate": "qwen", "threshold": 0.7}
ignored = [
    pytest.mark.filterwarnings("ignore::pydantic.warnings.PydanticDeprecationWarning"),
    pytest.mark.filterwarnings("ignore:is_running called from within a step:DeprecationWarning"),
]


@pytest.fixture(autouse=True)
def on_path(monkeypatch):
    monkeypatch.syspath_prepend(str(EXAMPLES))


# ---- without models


def test_every_example_has_a_twin_in_the_other_framework():
    langchain = {name.removesuffix("_langchain") for name in NAMES if name.endswith("_langchain")}
    llamaindex = {name.removesuffix("_llamaindex") for name in NAMES if name.endswith("_llamaindex")}
    assert langchain == llamaindex == {"rag_chroma", "voices_chroma", "agent_tools", "extraction", "handoff"}


# Those with Chroma take seconds to be imported.
@pytest.mark.parametrize("name", [name for name in NAMES if "chroma" not in name])
def test_examples_are_imported_without_loading_models(name):
    assert callable(importlib.import_module(name).build)


def test_the_command_line_is_explained(capsys):
    description = importlib.import_module("agent_tools_langchain").__doc__
    with pytest.raises(SystemExit) as ended:
        importlib.import_module("common").parser(description, (1, 1, 1), 0.7).parse_args(["--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert shown.index("An agent in LangChain with three tools") > shown.index("--models")


def test_questions_have_the_answers_that_the_tools_give():
    generated, tools = importlib.import_module("generated"), importlib.import_module("tools")
    tasks = generated.tool_questions(40, seed=3)
    assert [task.question for task in tasks] == [task.question for task in generated.tool_questions(40, seed=3)]
    assert len({task.question for task in tasks}) == 40
    for task in tasks[::4]:
        expression = task.question.removeprefix("What is ").removesuffix("?")
        assert float(tools.calculate(expression)) == eval(expression) == float(task.answers[0])
    nights, inn = tasks[3].question.removeprefix("What do ").removesuffix(" cost in all?").split(" nights at the ")
    assert float(task_answer := tasks[3].answers[0]) == int(nights) * int(tools.room_price(inn)), task_answer


def test_the_calculator_evaluates_arithmetic_only():
    calculate = importlib.import_module("tools").calculate
    assert calculate("-(2 + 3) * 4 / 8") == "-2.5"
    for expression in ("__import__('os')", "2 ** 99", "1 / 0", "2 +", "a", ""):
        assert calculate(expression).startswith("error: ")


def test_invoices_say_what_is_known_of_them():
    generated, invoice = importlib.import_module("generated"), importlib.import_module("invoice")
    for task in generated.invoices(12, seed=random.Random(0).randrange(100)):
        for field in ("supplier", "number", "quantity", "days_to_pay"):
            assert str(task.known[field]) in task.question
        assert f"{task.known['total']:.2f}" in task.question
        assert f"{task.known['unit_price']:.2f}" in task.question
        right = invoice.Invoice(**task.known)
        assert invoice.right_values(right, task.known) == 1
        assert invoice.right_values(right.model_copy(update={"quantity": 0}), task.known) == pytest.approx(6 / 7)


def test_a_gain_is_stated_with_its_interval():
    gain = importlib.import_module("common").gain
    scores = {"ensemble": [1.0] * 8, "a": [0.0] * 8, "b": [0.5] * 8}
    assert gain(scores) == "ensemble minus b, its best member: +50.0 points (+50.0 to +50.0, n = 8): a gain"
    assert gain({**scores, "ensemble": [0.0] * 8}).endswith("-50.0 points (-50.0 to -50.0, n = 8): a loss")
    assert "no difference that is certain" in gain({**scores, "ensemble": [0.0, 1.0] * 4})


def test_passages_of_the_handbook_have_the_answers():
    texts, tasks = importlib.import_module("passages").passages_and_tasks(EXAMPLES / "handbook.json")
    assert len(tasks) == 10
    assert all(any(task.answers[0] in text for text in texts) for task in tasks)


def test_every_second_passage_is_left_out():
    passages = importlib.import_module("passages")
    texts, tasks = passages.passages_with_gaps(EXAMPLES / "handbook.json")
    assert [task.answers[0] == passages.ABSENT for task in tasks] == [False, True] * 5
    assert len(texts) == 40 - 5
    assert all(any(task.answers[0] in text for text in texts) for task in tasks[::2])


def test_a_task_without_an_answer_scores_0():
    common = importlib.import_module("common")

    def solve(model, task):
        raise AnswerError("the call is truncated", "{")

    example = common.Example(None, solve, [common.Task("Where?", ("Halkus",))])
    (solved,) = common._solve(example, None, example.tasks, None)
    assert (solved.answer, solved.score) == ("none: the call is truncated", 0.0)
    args = common.parser(None, weights=(0, 2, 1), threshold=None).parse_args(["--models", "a", "b"])
    assert common.weights_of(args) == [1.0, 1.0]


# ---- on real models


@pytest.fixture(scope="module")
def members(real):
    with real.ensemble(*MEMBERS, dtype="bfloat16", deterministic=True) as ensemble:
        yield ensemble


@pytest.fixture
def solved(members):
    """Solves the first tasks of an example with the ensemble."""

    def solve(name, limit):
        common = importlib.import_module("common")
        given = ["--limit", str(limit), "--embeddings", str(REAL / "minilm")]
        args = common.parser(None, weights=(), threshold=None).parse_args(given)
        example = importlib.import_module(name).build(args, members)
        model = example.model(**SETTINGS)
        return [(task, example.solve(model, task)) for task in example.tasks[:limit]]

    return solve


def real_test(name):
    marks = [pytest.mark.real, *ignored]
    return pytest.mark.parametrize(
        "name", [pytest.param(f"{name}_{framework}", marks=marks) for framework in ("langchain", "llamaindex")]
    )


@real_test("rag_chroma")
def test_answers_come_with_their_sources(solved, name):
    texts, _ = importlib.import_module("passages").passages_and_tasks(EXAMPLES / "handbook.json")
    for task, answer in solved(name, 2):
        numbers = [int(part.split()[-1]) for part in answer.shown[0].split(",")]
        assert any(task.answers[0] in texts[number] for number in numbers)
        assert len(numbers) == 2
        assert answer.score == 1
        assert 0 <= answer.calls[0]["share_ensembled"] < 1


@real_test("voices_chroma")
def test_answers_of_voices_come_with_citations(solved, name):
    for _, answer in solved(name, 2):
        assert "sources: passage " in answer.shown[0]
        assert 0 <= answer.score <= 1
        assert answer.calls[0]["steps"] > 0


@real_test("agent_tools")
def test_tools_are_called_with_parsed_arguments(solved, name):
    (task, answer), *_ = solved(name, 1)
    assert answer.shown[0] == f"call: calculate({{'expression': '{task.question[8:-1]}'}})"
    assert 1 <= len(answer.shown) <= 2
    assert len(answer.calls) == len(answer.shown) + 1


@real_test("extraction")
def test_invoices_are_read(solved, name):
    for task, answer in solved(name, 1):
        assert task.known["supplier"] in answer.answer
        assert 0 < answer.score <= 1
        assert answer.calls[0]["steps"] > 0


@real_test("handoff")
def test_questions_are_handed_to_a_specialist(solved, name):
    tools = importlib.import_module("tools")
    for _, answer in solved(name, 1):
        assert any(specialist in answer.shown[0] for specialist in tools.SPECIALISTS)
        assert any(tool.__name__ in answer.shown[1] for _, tool in tools.SPECIALISTS.values())


@pytest.mark.real
def test_an_example_ends_with_its_gain(real):
    command = [sys.executable, str(EXAMPLES / "extraction_langchain.py"), "--limit", "1", "--weights", "1", "4"]
    command += ["--models", *map(real.folder, MEMBERS)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "ensemble minus qwen, its best member" in " ".join(done.stdout.split())
    assert "answered by" in done.stdout
