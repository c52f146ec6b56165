"""The files of examples/cluster: Ray's own checks of `ray up` files, and what else must agree among them."""

from __future__ import annotations

import re
import subprocess
import sys

import pytest
import yaml
from conftest import EMBEDDED, ROOT
from typer.testing import CliRunner

from gac_core import EnsembleConfig
from gac_core.cli import app

FOLDER = ROOT / "examples" / "cluster"
README = (FOLDER / "README.md").read_text(encoding="utf-8")


def read(name):
    return yaml.safe_load((FOLDER / name).read_text(encoding="utf-8"))


def pinned(package: str) -> str:
    """A package's version in the constraints."""
    return re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(encoding="utf-8"), flags=re.M)[1]


@pytest.mark.parametrize("name", ["aws.yaml", "on-premise.yaml"])
def test_ray_accepts_the_files_of_ray_up(name):
    util = pytest.importorskip("ray.autoscaler._private.util")
    prepared = util.prepare_config(read(name))
    util.validate_config(prepared)
    assert [command.split()[:3] for command in prepared["head_start_ray_commands"]] == [
        ["ray", "stop"],
        ["ray", "start", "--head"],
    ]
    assert prepared["file_mounts"]["~/.ray/auth_token"] == "~/.ray/auth_token"
    assert any("RAY_AUTH_MODE=token" in command for command in prepared["initialization_commands"])
    (workers,) = (each["max_workers"] for each in prepared["available_node_types"].values() if each["max_workers"])
    assert workers == 1


def test_the_mounted_folder_is_this_repository():
    for name in ("aws.yaml", "on-premise.yaml"):
        assert (FOLDER / read(name)["file_mounts"]["~/gac"]).resolve() == ROOT


def test_the_manifest_has_gpus_for_the_members_and_the_token():
    cluster = read("kuberay.yaml")
    config = EnsembleConfig.from_yaml(FOLDER / "ensemble.yaml")
    assert (cluster["apiVersion"], cluster["kind"]) == ("ray.io/v1", "RayCluster")
    assert cluster["spec"]["authOptions"] == {"mode": "token"}
    head = cluster["spec"]["headGroupSpec"]["template"]["spec"]
    (group,) = cluster["spec"]["workerGroupSpecs"]
    worker = group["template"]["spec"]
    gpus = group["replicas"] * int(worker["containers"][0]["resources"]["limits"]["nvidia.com/gpu"])
    assert gpus >= sum(member.num_gpus for member in config.members)
    assert head["containers"][0]["image"] == worker["containers"][0]["image"]
    for pod in (head, worker):
        (container,) = pod["containers"]
        assert container["resources"]["limits"] == container["resources"]["requests"]
        assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}


def test_the_ensemble_runs_on_ray_and_outlives_a_member():
    config = EnsembleConfig.from_yaml(FOLDER / "ensemble.yaml")
    assert (config.executor, config.ray_address, config.on_member_failure) == ("ray", "auto", "drop")
    assert config.gate in config.names


def test_one_version_of_ray_everywhere():
    version = pinned("ray")
    texts = {path.name: path.read_text(encoding="utf-8") for path in FOLDER.iterdir() if path.is_file()}
    for name in ("aws.yaml", "on-premise.yaml", "README.md"):
        assert f"ray[default]=={version}" in texts[name], name
    assert read("kuberay.yaml")["spec"]["rayVersion"] == version
    assert f"rayproject/ray:{version}-py3" in texts["Dockerfile"]
    for name in ("kuberay.yaml", "Dockerfile", "README.md"):
        assert f"REGISTRY/gac-ray:{version}" in texts[name], name


def test_the_readme_lists_every_file():
    listed = {
        name for line in README.splitlines() if line.startswith("| `") for name in re.findall(r"`([\w.-]+)`", line)
    }
    files = {path.name for path in FOLDER.iterdir() if path.is_file()}
    assert listed == files - {"README.md"}


def test_the_ports_of_the_readme_are_those_of_the_file():
    ports = set(re.findall(r"port=(\d+)", (FOLDER / "on-premise.yaml").read_text(encoding="utf-8")))
    table = README.partition("## Ports")[2].partition("## When")[0]
    assert ports == {"6379", "6380", "6381", "10002", "10101"}
    assert all(port in table for port in ports)


def test_the_readme_plans_with_options_that_there_are():
    command = next(line.split() for line in README.splitlines() if line.lstrip().startswith("gac plan"))
    options = command[command.index("--devices") :]
    result = CliRunner().invoke(app, ["plan", *EMBEDDED[:2], *options], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert all(device in result.output for device in ("cuda:0", "cuda:1"))


@pytest.mark.ray
@pytest.mark.slow
def test_two_nodes_answer_a_question():
    command = [sys.executable, "examples/cluster/two_nodes.py"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=300)
    assert run.returncode == 0, run.stderr
    assert "The Velgin Bridge crosses the river in Borfen." in run.stdout
    assert re.findall(r"^(\w+): ready on \S", run.stdout, flags=re.M) == ["ash", "cedar"]
