"""``gac doctor``: shows whether this machine can run ensembles, and what is wrong if it cannot."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gac_core.cli.evaluation_inputs import configuration
from gac_core.errors import GaCError
from gac_core.loading import CONFIG_VARIABLE
from gac_core.placement.sizes import format_bytes

if TYPE_CHECKING:
    from gac_core.diagnosis.machine import Machine
    from gac_core.diagnosis.models import ModelFacts
    from gac_core.diagnosis.packages import Package
    from gac_core.diagnosis.selftest import SelfTest
    from gac_core.member_config import MemberConfig

# Text that is printed as it is.
PLAIN: dict[str, Any] = {"highlight": False, "markup": False, "soft_wrap": True}


@dataclass(frozen=True)
class Diagnosis:
    """What `gac doctor` finds out.

    Attributes:
        packages: Python and packages.
        machine: Devices, memory and environment.
        source: Where ``models`` come from.
        models: The models.
        check: The outcome of the test; None if it was not asked for.
        problems: What is wrong, each with its remedy. Models in the hub's cache that cannot be members are no problem.
    """

    packages: tuple[Package, ...]
    machine: Machine
    source: str
    models: tuple[ModelFacts, ...]
    check: SelfTest | None
    problems: tuple[str, ...]


def doctor(
    models: Annotated[
        list[str] | None,
        typer.Argument(
            help="Models, or one YAML file. Default: the configuration that GAC_CONFIG names, else the models in the "
            "cache of the model hub. No weights are loaded without --check."
        ),
    ] = None,
    check: Annotated[
        bool,
        typer.Option("--check", help="Generate 4 tokens with the models, or without any with tiny random ones."),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the report as JSON.")] = False,
) -> None:
    """Show versions, devices, memory and models, and what is wrong with them; exit with 1 if something is."""
    found = diagnose(models or (), check)
    if as_json:
        typer.echo(json.dumps(as_dict(found), indent=1, ensure_ascii=False))
    else:
        show(found, Console())
    if found.problems:
        raise typer.Exit(1)


def diagnose(models: Sequence[str] = (), check: bool = False) -> Diagnosis:
    """Returns the report of `gac doctor`; uses no network.

    Args:
        models: Models, or one YAML file. Default: as in `doctor`.
        check: Whether to generate with them.
    """
    variables = dict(os.environ)
    # Must be set before huggingface_hub is imported.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    from gac_core.diagnosis.machine import machine
    from gac_core.diagnosis.models import cached_models, ensemble_problem, model_facts
    from gac_core.diagnosis.packages import packages
    from gac_core.diagnosis.selftest import run_self_test

    installed, here = packages(), machine(variables)
    problems = [*(each.problem for each in installed if each.problem), *here.problems]
    source, config = "the cache of the model hub", None
    arguments = list(models) or [path for path in [variables.get(CONFIG_VARIABLE)] if path]
    if arguments:
        source = "the arguments" if models else f"{CONFIG_VARIABLE}={arguments[0]}"
        try:
            config = configuration(arguments)
        except GaCError as error:
            problems.append(str(error))
    members = config.members if config is not None else _apart(arguments) if arguments else cached_models()
    facts = [model_facts(member, config) for member in members]
    if arguments:
        wrong = [each.problem for each in facts if each.problem]
        together = None if wrong or config is None or len(facts) == 1 else ensemble_problem(config)
        problems += [*wrong, *([] if together is None else [together])]
    outcome = None
    if check and (config is not None or not arguments):
        outcome = run_self_test(config and replace(config, progress=False))
        problems += [] if outcome.problem is None or outcome.problem in problems else [outcome.problem]
    return Diagnosis(tuple(installed), here, source, tuple(facts), outcome, tuple(problems))


def _apart(models: Sequence[str]) -> Sequence[MemberConfig]:
    """Returns models that cannot be members of one ensemble, such as two of one name, each by itself."""
    if len(models) == 1:
        return []
    from gac_core.member_config import MemberConfig

    try:
        return [MemberConfig(model) for model in models]
    except GaCError:
        return []


def as_dict(found: Diagnosis) -> dict[str, Any]:
    """Returns a report as plain values, sizes in bytes."""
    return asdict(found)


def show(found: Diagnosis, console: Console) -> None:
    """Prints a report."""
    for line in _packages(found.packages):
        console.print(line, **PLAIN)
    here = found.machine
    limits = [] if here.memory_limit is None else [f"memory limit {format_bytes(here.memory_limit)}"]
    limits += [] if here.cpu_limit is None else [f"processor limit {here.cpu_limit:g} cores"]
    gpu = f"torch for CUDA {here.cuda}" if here.cuda else "torch for the CPU alone"
    driver = f"NVIDIA driver {here.driver}" if here.driver else "no NVIDIA driver"
    facts = [here.system, f"{here.cores} cores, {here.threads} threads of torch", *limits, gpu, driver]
    console.print("; ".join(facts), **PLAIN)
    for each in here.devices:
        memory = f"{format_bytes(each.free)} free of {format_bytes(each.total)}"
        console.print(f"device {each.name}: {each.model}, {memory}", **PLAIN)
    for name, value in here.environment.items():
        console.print(f"{name}={value}", **PLAIN)
    for name in here.secrets:
        console.print(f"{name} is set", **PLAIN)
    console.print(f"models of {found.source}:" if found.models else f"no models in {found.source}", **PLAIN)
    for model in found.models:
        console.print(f"  {model.name}: {_model(model)}", **PLAIN)
    if found.check is not None:
        console.print(_outcome(found.check), **PLAIN)
    for problem in found.problems:
        console.print(f"problem: {problem}", **PLAIN, style="red")
    if not found.problems:
        console.print("no problems found")


def _packages(installed: Sequence[Package]) -> list[str]:
    """Returns what is installed, in one line for each extra, and how to install what is not."""
    lines = []
    for extra in dict.fromkeys(each.extra for each in installed):
        of_extra = [each for each in installed if each.extra == extra]
        here = [f"{each.name} {each.version}" for each in of_extra if each.version]
        missing = [each for each in of_extra if not each.version]
        label = "installed" if extra is None else f"extra {extra}"
        absent = f"not installed: {', '.join(each.name for each in missing)} ({missing[0].remedy})" if missing else ""
        lines.append(f"{label}: {'; '.join(part for part in (', '.join(here), absent) if part)}")
    return lines


def _model(model: ModelFacts) -> str:
    if model.architecture is None:
        return str(model.problem)
    size = "size unknown" if model.weights is None else format_bytes(model.weights)
    template = "no chat template" if model.tools is None else f"chat template, tools {model.tools}"
    facts = (
        model.architecture,
        " ".join(word for word in (size, "as", model.quantization, model.dtype) if word),
        "context unknown" if model.context is None else f"context {model.context:,}",
        template,
        *(["images"] if model.vision else []),
        "does not fit" if model.placement is None else f"fits on {model.placement}",
    )
    return "; ".join(facts)


def _outcome(check: SelfTest) -> str:
    names = ", ".join(check.members)
    state = "failed" if not check.ok else "ok" if check.text is None else f"ok: {check.text!r}"
    return f"test with {names}: {state}, {check.seconds:.1f} s"
