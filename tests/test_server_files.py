"""The files of examples/server and docs/operations.md agree with the command and with one another."""

from __future__ import annotations

import inspect
import re

import typer
import yaml
from conftest import ROOT

from gac_core import EnsembleConfig
from gac_core.cli import app
from gac_core.cli.serve import named_configurations
from gac_core.server.access.auth import OPEN_PATHS
from gac_core.server.lifecycle.draining_server import SEND_SECONDS, STEP_SECONDS
from gac_core.server.lifecycle.process import EXIT_SECONDS
from gac_core.server.settings import ServerSettings

FOLDER = ROOT / "examples" / "server"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
DOCKERFILE = (FOLDER / "Dockerfile").read_text(encoding="utf-8")
COMPOSE = yaml.safe_load((FOLDER / "compose.yaml").read_text(encoding="utf-8"))
SERVE = {
    option.opts[0]: option
    for option in typer.main.get_command(app).commands["serve"].params  # type: ignore[attr-defined]
    if option.opts[0].startswith("--")
}


def instructions(name):
    """The arguments of an instruction of the Dockerfile, lines that go on joined."""
    joined = re.sub(r"\\\n\s*", "", DOCKERFILE)
    return [line.removeprefix(name).strip() for line in joined.splitlines() if line.startswith(f"{name} ")]


def test_the_options_of_the_documentation_are_those_of_the_command():
    rows = re.findall(r"^\| `(--[\w-]+)` \| *(\S*) *\|", OPERATIONS, flags=re.M)
    shown = {None: "", False: "off"}
    expected = {name: shown.get(option.default, str(option.default)) for name, option in SERVE.items()}
    assert dict(rows) == expected
    assert len(rows) == len(expected)


def test_defaults_of_the_command_are_those_of_the_settings():
    defaults = {name: each.default for name, each in inspect.signature(ServerSettings).parameters.items()}
    for name, option in SERVE.items():
        field = name[2:].replace("-", "_")
        if field in defaults and not isinstance(defaults[field], tuple):
            assert option.default == defaults[field], name
    assert SERVE["--max-body-mib"].default * 2**20 == defaults["max_body_bytes"]


def test_the_image_copies_what_exists_and_runs_the_command():
    for line in instructions("COPY"):
        *sources, _ = line.split()
        assert all((ROOT / source).exists() for source in sources)
    assert "GAC_API_KEYS" not in DOCKERFILE
    [user] = instructions("USER")
    assert user not in ("root", "0")
    assert instructions("ENTRYPOINT") == ['["gac", "serve"]']
    arguments = yaml.safe_load(instructions("CMD")[0])
    assert [each for each in arguments if each.startswith("--")] == ["--host"]
    [probe] = re.findall(r"http://127\.0\.0\.1:8000(/\w+)", DOCKERFILE)
    assert probe in OPEN_PATHS
    assert instructions("EXPOSE") == [str(ServerSettings().port)]
    assert "[server,otel]" in DOCKERFILE


def test_the_compose_file_mounts_what_exists_and_has_no_secrets():
    services = COMPOSE["services"]
    for service in services.values():
        for volume in service["volumes"]:
            source = volume.split(":")[0]
            assert (FOLDER / source).exists() if source.startswith(".") else source in COMPOSE["volumes"]
        for port in service["ports"]:
            assert port.startswith("127.0.0.1:")
        for name, value in service.get("environment", {}).items():
            assert value.startswith("${"), f"{name} is a secret or a constant"
    build = services["gac"]["build"]
    assert (FOLDER / build["context"]).resolve() == ROOT
    assert ROOT / build["dockerfile"] == FOLDER / "Dockerfile"
    assert set(build["args"]) <= {line.split("=")[0] for line in instructions("ARG")}
    mounted = next(volume.split(":")[1] for volume in services["gac"]["volumes"] if "ensemble.yaml" in volume)
    assert mounted == yaml.safe_load(instructions("CMD")[0])[0]


def test_the_container_is_not_killed_during_the_drain():
    needed = ServerSettings().drain_timeout + STEP_SECONDS + SEND_SECONDS + EXIT_SECONDS
    assert int(COMPOSE["services"]["gac"]["stop_grace_period"].removesuffix("s")) >= needed
    manifest = yaml.safe_load(re.search(r"```yaml\n(terminationGrace.*?)```", OPERATIONS, flags=re.S)[1])
    [container] = manifest["containers"]
    before = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert manifest["terminationGracePeriodSeconds"] >= needed + before
    assert {container[f"{kind}Probe"]["httpGet"]["path"] for kind in ("startup", "liveness", "readiness")} <= OPEN_PATHS
    assert {argument for argument in container["args"] if argument.startswith("--")} <= set(SERVE)


def test_failing_probes_do_not_count_as_failing_requests():
    groups = yaml.safe_load((FOLDER / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    [query] = [rule["expr"] for group in groups for rule in group["rules"] if rule["alert"] == "GacRequestsFail"]
    excluded = re.findall(r'gac_requests_total\{[^}]*route!~"([^"]*)"', query)
    assert [set(routes.split("|")) for routes in excluded] == [OPEN_PATHS] * query.count("gac_requests_total")


def test_the_ensemble_is_valid():
    config = named_configurations([str(FOLDER / "ensemble.yaml")])["ensemble"]
    assert isinstance(config, EnsembleConfig)
    assert config.gate in config.names
