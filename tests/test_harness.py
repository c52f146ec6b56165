"""`gac_core.harness`: an ensemble as a model of lm-evaluation-harness, and tasks on local data."""

from __future__ import annotations

import importlib
import json
import math
import subprocess
import sys

import pytest
from conftest import EMBEDDED, QUESTION, ROOT, SHARED, shared_ensemble

from benchmarks.tasks import write_tasks
from gac_core import ConfigError, RequestError, SamplingParams, UnknownArgumentError

# lm-evaluation-harness and the metrics that it imports use what others deprecate.
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

ROWS = [
    {"split": "shots", "question": "In which town is the Torno Bridge?", "answers": ["Halkus"]},
    {"question": "In which town is the Velgin Bridge?", "answers": ["Borfen"], "_note": "a key of the file's own"},
    {"question": "When was the Torno Bridge built?", "answers": ["1874", "in 1874"]},
]
CHOICES = [{**row, "choices": ["Halkus", "Borfen", "1874"], "answers": row["answers"][:1]} for row in ROWS]


@pytest.fixture(scope="module")
def harness():
    """The package, and what its tests need of lm-evaluation-harness."""
    from lm_eval.api.instance import Instance

    import gac_core.harness as package

    def instances(kind, *arguments):
        return [Instance(kind, {}, each, index) for index, each in enumerate(arguments)]

    package.instances = instances
    return package


@pytest.fixture(scope="module")
def two():
    with shared_ensemble(EMBEDDED[:2], weights=[1.0, 2.0]) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def model(harness, two):
    return harness.GaCLM(ensemble=two)


def test_log_likelihoods_are_scores(harness, model, two):
    pairs = [("In which town", " Halkus"), ("In which town ", "Halkus"), ("", "In which town"), ("  ", "a")]
    found = model.loglikelihood(harness.instances("loglikelihood", *pairs), disable_tqdm=True)
    assert found[0] == found[1]
    scores = [two.score("In which town", " Halkus"), two.score("", "In which town"), two.score("", "  a")]
    for (logprob, greedy), wanted in zip(found[1:], scores, strict=True):
        assert (logprob, greedy) == (pytest.approx(wanted.logprob, abs=1e-4), wanted.greedy)
    best = two.generate(QUESTION, max_tokens=6)
    chat = model.apply_chat_template(QUESTION)
    [(logprob, greedy)] = model.loglikelihood(harness.instances("loglikelihood", (chat, best.text)), disable_tqdm=True)
    assert greedy
    assert logprob == pytest.approx(two.score(QUESTION, best.text).logprob, abs=1e-4)


def test_rolling_log_likelihoods_score_each_token_once(harness, model, two):
    text = "The Torno Bridge stands in Halkus. É ü 😀 1874! " * 12
    [whole] = model.loglikelihood_rolling(harness.instances("loglikelihood_rolling", (text,)), disable_tqdm=True)
    assert whole == pytest.approx(two.score("", text).logprob, rel=1e-4)
    from gac_core.harness.windows import windows

    tokens = two.cut(text)
    for limit in (40, 97, 10_000):
        parts = windows(tokens, limit, two.count_tokens)
        assert tuple(token for part in parts for token in part.tokens) == tokens
        assert all(two.count_tokens(part.text) <= limit for part in parts)
        assert parts[0].context == ""
        before = b""
        for part in parts[1:]:
            before += b"".join(parts[parts.index(part) - 1].tokens)
            assert before.endswith(part.context.encode())
            assert part.context
    # The last window reads as much as a whole one.
    parts = windows([b"a"] * 10, 4, len)
    assert [(part.context, len(part.tokens)) for part in parts] == [("", 3), ("a", 3), ("a", 3), ("aaa", 1)]
    with pytest.raises(RequestError, match="no part of the text fits"):
        windows(tokens, 1, two.count_tokens)


def test_generation_follows_the_arguments_of_the_task(harness, model, two):
    chat = model.apply_chat_template(QUESTION)
    asked = [
        ("In which town", {"until": ["\n", ""], "max_gen_toks": 9, "do_sample": False, "temperature": 0.0}),
        (chat, {"until": "Halkus", "max_new_tokens": 30}),
        ("In which town", {"do_sample": True, "temperature": 0.9, "top_p": 0.9, "top_k": 0, "max_gen_toks": 9}),
        ("In which town", {"presence_penalty": 2.0, "frequency_penalty": 1.5, "max_gen_toks": 20}),
    ]
    found = model.generate_until(harness.instances("generate_until", *asked), disable_tqdm=True)
    assert found[0] == two.generate("In which town", max_tokens=9, stop=("\n",)).text
    assert found[1] == two.generate(QUESTION, max_tokens=30, stop=("Halkus",)).text
    assert found[2] == two.generate("In which town", temperature=0.9, top_p=0.9, seed=2, max_tokens=9).text
    penalties = {"presence_penalty": 2.0, "frequency_penalty": 1.5}
    assert found[3] == two.generate("In which town", max_tokens=20, **penalties).text
    assert found[3] != two.generate("In which town", max_tokens=20).text
    for arguments, error in [
        ({"num_beams": 4}, UnknownArgumentError),
        ({"do_sample": True}, RequestError),
        ({"until": [3]}, RequestError),
    ]:
        with pytest.raises(error):
            model.generate_until(harness.instances("generate_until", ("a", arguments)), disable_tqdm=True)


def test_parameters_of_the_model_apply_to_all_requests(harness, two):
    alone = harness.GaCLM(ensemble=two, params=SamplingParams(threshold=0.0, gate="ash"), batch_size="3")
    [(logprob, _)] = alone.loglikelihood(harness.instances("loglikelihood", ("In which", " town")), disable_tqdm=True)
    assert logprob == pytest.approx(two.score("In which", " town", threshold=0.0, gate="ash").logprob, abs=1e-4)


def test_partial_results_are_cached(harness, two):
    one, kept = harness.GaCLM(ensemble=two), []
    one.cache_hook.add_partial = lambda kind, arguments, result: kept.append((kind, arguments, result))
    requests = harness.instances("loglikelihood", ("a", "b"), ("a", ""))
    with pytest.raises(RequestError, match="empty"):
        one.loglikelihood(requests, disable_tqdm=True)
    assert [(kind, arguments) for kind, arguments, _ in kept] == [("loglikelihood", ("a", "b"))]


def test_chat_templates_are_those_of_the_members(harness, model, two):
    assert json.loads(model.chat_template(True)).keys() == {"ash", "birch"}
    assert model.chat_template(False) is None
    assert model.tokenizer_name == "gac-ash-birch"
    with pytest.raises(RequestError, match="gen_prefix"):
        model.apply_chat_template(QUESTION, add_generation_prompt=False)
    with pytest.raises(RequestError, match="appends text"):
        model.loglikelihood(harness.instances("loglikelihood", (model.apply_chat_template(QUESTION) + "x", "a")))


def test_arguments_of_the_model(harness):
    given = f"pretrained={EMBEDDED[0]}+{EMBEDDED[1]},weights=1+3,dtype=float32,threshold=0.5,gate=birch"
    loaded = harness.GaCLM.create_from_arg_string(given, {"batch_size": 2, "device": "cuda:0", "max_batch_size": None})
    with loaded.ensemble as ensemble:
        assert [member.weight for member in ensemble.config.members] == [1.0, 3.0]
        assert (ensemble.config.threshold, ensemble.gate) == (0.5, "birch")
    for wrong in ({}, {"pretrained": "a", "config": "b"}, {"config": "b", "dtype": "float32"}):
        with pytest.raises(ConfigError):
            harness.GaCLM(**wrong)
    with shared_ensemble(EMBEDDED[:1]) as one, pytest.raises(ConfigError, match="batch_size"):
        harness.GaCLM(ensemble=one, batch_size="none")


def evaluated(harness, model, folder, tasks, **asked):
    """Results of tasks by name, with log-likelihoods and answers computed by a model."""
    import lm_eval
    from lm_eval.tasks import TaskManager

    manager = TaskManager(include_path=str(harness.TASKS), include_defaults=False, metadata={"folder": str(folder)})
    found = lm_eval.simple_evaluate(model, tasks=tasks, task_manager=manager, bootstrap_iters=0, **asked)
    return found["samples"], found["results"]


@pytest.mark.parametrize("chat", [False, True])
def test_tasks_run_on_local_data(harness, model, two, tmp_path, chat):
    for name, rows in (("nq", ROWS), ("mmlu", CHOICES)):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    about = {"context": "The Torno Bridge is in Halkus.", "question": "Where?", "answers": ["Halkus"]}
    (tmp_path / "squad.jsonl").write_text("\n".join([json.dumps(about)] * 3), encoding="utf-8")
    asked = {"apply_chat_template": chat, "gen_kwargs": "max_gen_toks=6"}
    samples, results = evaluated(harness, model, tmp_path, ["gac_nq", "gac_mmlu", "gac_squad"], **asked)
    assert len(samples["gac_nq"]) == len(samples["gac_mmlu"]) == 2
    for sample in samples["gac_mmlu"]:
        prompt = sample["doc"]["prompt"]
        assert prompt.startswith(f"{ROWS[0]['question']}\nA. Halkus\nB. Borfen\nC. 1874\nAnswer: A\n\n", 10)
        turns = [{"role": "user", "content": prompt}]
        scores = [two.score(*((turns, letter) if chat else (prompt, f" {letter}"))).logprob for letter in "ABC"]
        assert [float(each[0]) for each in sample["filtered_resps"]] == pytest.approx(scores, abs=1e-3)
        assert sample["acc"] == float(scores.index(max(scores)) == sample["doc"]["right"])
    assert results["gac_squad"]["sample_len"] == 1
    assert not math.isnan(results["gac_nq"]["f1,none"])


@pytest.mark.shared
def test_the_shared_data_of_every_task_can_be_read(harness, monkeypatch, tmp_path):
    write_tasks(SHARED / "datasets", tmp_path)
    monkeypatch.setenv("GAC_BENCHMARKS", str(tmp_path))
    from gac_core.harness.data import load, number, words

    sizes = {name: len(load(name)["test"]) for name in ("mmlu", "nq", "triviaqa", "bbh", "gsm8k", "squad")}
    assert sizes == {"mmlu": 1200, "nq": 800, "triviaqa": 800, "bbh": 189, "gsm8k": 1315, "squad": 300}
    first = load("gsm8k", shots=1)["test"][0]
    assert first["prompt"].count("Question:") == 2
    assert number(first, [first["answers"][0]]) == {"exact_match": 1.0}
    assert words({"answers": ["the Halkus"]}, ["Halkus."]) == {"exact_match": 1.0, "f1": 1.0}


def test_data_that_is_not_there_has_a_remedy(harness, tmp_path, monkeypatch):
    from gac_core.harness.data import load

    monkeypatch.delenv("GAC_BENCHMARKS", raising=False)
    with pytest.raises(ConfigError, match=r"gac_nq needs a folder with nq.jsonl; set GAC_BENCHMARKS"):
        load("nq")
    with pytest.raises(ConfigError, match=r"has no mmlu.jsonl"):
        load("mmlu", folder=str(tmp_path))


def test_without_lm_eval_the_error_names_the_extra(harness, monkeypatch):
    for name in [name for name in sys.modules if name.startswith("gac_core.harness")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(ConfigError, match=r"needs lm-evaluation-harness.*gac-ensemble\[lm-eval\]"):
        importlib.import_module("gac_core.harness")


@pytest.mark.slow
def test_the_command_line_runs_a_task(tmp_path):
    (tmp_path / "nq.jsonl").write_text("\n".join(map(json.dumps, ROWS)), encoding="utf-8")
    command = [sys.executable, "-m", "gac_core.harness", "--model", "gac", "--tasks", "gac_nq"]
    command += ["--model_args", f"pretrained={EMBEDDED[0]}+{EMBEDDED[1]},dtype=float32", "--batch_size", "auto"]
    command += ["--metadata", json.dumps({"folder": str(tmp_path)})]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert "|gac_nq|" in run.stdout.replace(" ", ""), run.stderr[-2000:]
