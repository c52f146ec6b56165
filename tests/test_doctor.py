"""`gac doctor`: versions, machine and models, and what is wrong with them."""

from __future__ import annotations

import json
from importlib.metadata import version

import pytest
from conftest import EMBEDDED
from typer.testing import CliRunner

from gac_core.cli import app
from gac_core.cli.doctor import diagnose
from gac_core.diagnosis import packages as packages_module
from gac_core.diagnosis.machine import machine
from gac_core.diagnosis.models import cached_models, model_facts
from gac_core.diagnosis.packages import packages
from gac_core.diagnosis.selftest import run_self_test
from gac_core.member_config import MemberConfig
from gac_core.model.cgroup import control_group


@pytest.fixture(autouse=True)
def no_variables(monkeypatch):
    for name in ("GAC_CONFIG", "GAC_DEVICE"):
        monkeypatch.delenv(name, raising=False)


def run(*arguments: str):
    return CliRunner().invoke(app, ["doctor", *arguments])


def test_models_are_described_as_they_would_be_loaded():
    result = run(*EMBEDDED[:2], "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.output)
    ash, birch = report["models"]
    assert (ash["name"], birch["name"]) == ("ash", "birch")
    with_template = {"chat_template": True, "tools": "described", "vision": False, "quantization": None}
    assert with_template.items() <= ash.items()
    assert ash["architecture"].endswith("ForCausalLM")
    assert (ash["placement"], ash["problem"], report["problems"]) == ("cpu", None, [])
    # All files are at hand, so that the size is exact.
    assert ash["weights"] > birch["weights"] > 10**5
    names = [device["name"] for device in report["machine"]["devices"]]
    assert names[-1] == "cpu"


def test_the_text_names_the_same_facts():
    result = run(EMBEDDED[0])
    assert result.exit_code == 0, result.output
    assert "  ash: " in result.output
    assert "chat template, tools described; fits on cpu\n" in result.output
    assert "models of the arguments:" in result.output
    assert result.output.rstrip().endswith("no problems found")


def test_models_of_one_name_are_described_each_by_itself():
    result = run(EMBEDDED[0], EMBEDDED[0])
    assert result.exit_code == 1
    assert result.output.count("  ash: LlamaForCausalLM; ") == 2
    assert "problem: two members are called 'ash'; give one another MemberConfig.name" in result.output


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no folder"),
        ({}, "the folder has no config.json"),
        ({"config.json": "{"}, "cannot load member"),
        (
            {"config.json": '{"model_type": "bert", "architectures": ["BertModel"]}', "model.safetensors": ""},
            "is not a causal language model",
        ),
        (
            {"config.json": '{"model_type": "llama", "architectures": ["LlamaForCausalLM"]}', "model.safetensors": "x"},
            "its weights cannot be read",
        ),
    ],
)
def test_a_model_that_cannot_be_loaded_is_a_problem_with_the_words_of_loading(content, problem, tmp_path):
    folder = tmp_path / "broken"
    if content is not None:
        folder.mkdir()
        (folder / "README.md").write_text("no model")
    for name, text in (content or {}).items():
        (folder / name).write_text(text)
    result = run(str(folder), EMBEDDED[0])
    assert result.exit_code == 1
    assert problem in result.output
    assert "  broken: cannot load member " in result.output
    assert "  ash: " in result.output


def test_the_configuration_of_the_environment_is_the_default(tmp_path, monkeypatch):
    path = tmp_path / "pair.yaml"
    path.write_text(json.dumps({"members": [{"model": EMBEDDED[0]}, {"model": EMBEDDED[1]}]}))
    monkeypatch.setenv("GAC_CONFIG", str(path))
    found = diagnose()
    assert found.source == f"GAC_CONFIG={path}"
    assert [model.name for model in found.models] == ["ash", "birch"]
    assert found.problems == ()
    path.write_text("members: [a]\nthreshould: 0.5\n")
    (problem,) = diagnose().problems
    assert "threshould" in problem


def test_members_that_do_not_fit_together_are_a_problem(tmp_path):
    path = tmp_path / "large.yaml"
    path.write_text(json.dumps({"members": [{"model": EMBEDDED[0]}, {"model": EMBEDDED[1]}], "cache_gib": 2.0**20}))
    found = diagnose([str(path)])
    assert found.problems
    assert "GiB" in found.problems[0]
    assert all(model.placement is None for model in found.models)


def test_models_of_the_hub_are_found_in_its_cache(tmp_path):
    for name, files in {"org--ash": ["config.json"], "org--notes": ["README.md"]}.items():
        snapshot = tmp_path / f"models--{name}" / "snapshots" / ("0" * 40)
        snapshot.mkdir(parents=True)
        for file in files:
            (snapshot / file).write_text("{}")
    (member,) = cached_models(tmp_path)
    assert member.called == "org/ash"
    # It cannot be used, which is no problem of the machine.
    assert model_facts(member).problem
    assert cached_models(tmp_path / "nowhere") == []


def test_a_self_test_generates_with_random_or_given_models():
    assert run_self_test().ok
    found = diagnose([EMBEDDED[0]], check=True)
    assert found.check is not None
    assert found.check.ok
    assert found.check.members == ("ash",)
    assert found.check.text


def test_a_self_test_that_fails_is_a_problem(tmp_path):
    result = run(str(tmp_path), "--check")
    assert result.exit_code == 1
    assert f"test with {tmp_path.name}: failed" in result.output
    assert result.output.count("problem: ") == 1


def test_packages_are_those_that_this_library_declares(monkeypatch):
    found = {package.name: package for package in packages()}
    assert found["torch"].version == version("torch")
    assert found["langchain-core"].extra == "langchain"
    assert not [package.problem for package in found.values() if package.problem]
    versions = {"torch": "1.0", "ray": None, "transformers": None}
    monkeypatch.setattr(packages_module, "_version", lambda name: versions.get(name, "9" if name != "x" else None))
    found = {package.name: package for package in packages()}
    assert found["torch"].problem.startswith("torch 1.0 is installed, but '>=2.6' is needed: pip install 'torch>=2.6'")
    assert found["transformers"].problem.startswith("transformers is not installed: pip install 'transformers")
    assert (found["ray"].problem, found["ray"].remedy) == (None, "pip install 'gac-ensemble[ray]'")


def test_the_text_says_how_to_install_what_is_missing(monkeypatch):
    monkeypatch.setattr(packages_module, "_version", lambda name: None if name in ("ray", "fastapi") else version(name))
    output = run(EMBEDDED[0]).output
    assert "\nextra ray: not installed: ray (pip install 'gac-ensemble[ray]')\n" in output
    assert "; not installed: fastapi (pip install 'gac-ensemble[server]')\n" in output
    assert f"\nextra gguf: gguf {version('gguf')}\n" in output


def test_secrets_are_not_shown(monkeypatch):
    secrets = {"HF_TOKEN": "hf_1234", "HF_ENDPOINT": "https://user:hf_1234@hub.example/path@1"}
    here = machine({**secrets, "OMP_NUM_THREADS": "2", "RAY_ADDRESS": "", "PATH": "/bin"})
    shown = {"HF_ENDPOINT": "https://hub.example/path@1", "OMP_NUM_THREADS": "2", "RAY_ADDRESS": ""}
    assert (here.environment, here.secrets) == (shown, ("HF_TOKEN",))
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    output = run(EMBEDDED[0]).output
    assert "\nHF_TOKEN is set\n" in output
    assert "hf_1234" not in output


def test_a_device_of_the_environment_that_does_not_exist_is_a_problem():
    (problem,) = machine({"GAC_DEVICE": "cuda:99"}).problems
    assert problem.startswith("GAC_DEVICE='cuda:99' cannot be used: ")


@pytest.mark.parametrize(
    ("files", "limit", "used", "cores"),
    [
        ({}, None, 0, None),
        ({"memory.max": "max", "memory.current": "500", "cpu.max": "max 100000"}, None, 500, None),
        (
            {
                **{"memory.max": "1000", "memory.current": "500", "memory.stat": "anon 300\ninactive_file 200"},
                "cpu.max": "150000 100000",
            },
            *(1000, 300, 1.5),
        ),
        (
            {
                **{"memory/memory.limit_in_bytes": "1000", "memory/memory.usage_in_bytes": "400"},
                **{"memory/memory.stat": "inactive_file 1\ntotal_inactive_file 150"},
                **{"cpu/cpu.cfs_quota_us": "200000", "cpu/cpu.cfs_period_us": "100000"},
            },
            *(1000, 250, 2.0),
        ),
        (
            {
                **{"memory/memory.limit_in_bytes": "9223372036854771712", "memory/memory.usage_in_bytes": "400"},
                **{"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"},
            },
            *(None, 400, None),
        ),
    ],
)
def test_limits_of_a_control_group_are_read(files, limit, used, cores, tmp_path):
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    group = control_group(tmp_path)
    assert (group.memory_limit, group.memory_used, group.cpu_limit) == (limit, used, cores)
    assert group.memory_free == (None if limit is None else limit - used)


def test_free_memory_is_at_most_what_the_control_group_leaves(monkeypatch):
    from gac_core.model import memory
    from gac_core.model.cgroup import ControlGroup

    monkeypatch.setattr(memory, "control_group", lambda: ControlGroup(1000, 400, None))
    assert memory.free_bytes("cpu") == 600


def test_a_model_says_what_it_is_quantized_with():
    assert model_facts(MemberConfig(EMBEDDED[0], quantization="8bit")).quantization == "8bit"
