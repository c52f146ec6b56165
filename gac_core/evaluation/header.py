"""What the answers of a results file have in common."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from gac_core.calibration_file import Calibration
from gac_core.config import EnsembleConfig
from gac_core.errors import listed, quote
from gac_core.evaluation.task import Task

# Fields of a member that determine where it runs and what it may load, not its answers.
_PLACEMENT = ("device", "device_map", "compile", "num_gpus", "num_cpus", "resources", "trust_remote_code")


@dataclass(frozen=True)
class Header:
    """What the answers of a file have in common; a run with another header is refused.

    Attributes:
        data: Digest of each file, by name of the task.
        members: Name of each member, and fields of its configuration that answers depend on, in order; without
            defaults.
        ensemble: Settings of the ensemble that answers depend on.
        form: Fields of the `PromptForm` of each task, without defaults.
        metrics: Names of the metrics of each task; the first one counts.
    """

    data: Mapping[str, str]
    members: Sequence[Mapping[str, Any]]
    ensemble: Mapping[str, Any]
    form: Mapping[str, Mapping[str, Any]]
    metrics: Mapping[str, Sequence[str]]

    def difference(self, other: Header) -> str | None:
        """Returns what differs, as text; None if nothing does."""
        ours, theirs = json.loads(json.dumps(asdict(self))), json.loads(json.dumps(asdict(other)))
        for name in ours:
            if ours[name] != theirs[name]:
                if name == "data":
                    return f"the questions: {_other_questions(ours[name], theirs[name])}"
                return f"{name}: {_first_difference(ours[name], theirs[name])}"
        return None


def _other_questions(ours: Mapping[str, str], theirs: Mapping[str, str]) -> str:
    """Returns how the questions of two runs differ, from the digest of each file."""
    if ours.keys() == theirs.keys():
        changed = [name for name in ours if ours[name] != theirs[name]]
        return f"those of {listed(map(quote, changed))} are not the same as in the file"
    return f"{listed(map(quote, theirs))} in the file, {listed(map(quote, ours))} now"


def _first_difference(ours: Any, theirs: Any) -> str:
    """Returns the innermost values that differ."""
    if isinstance(ours, dict) and isinstance(theirs, dict):
        for key in {**ours, **theirs}:
            if ours.get(key) != theirs.get(key):
                return f"{key}: {_first_difference(ours.get(key), theirs.get(key))}"
    if isinstance(ours, list) and isinstance(theirs, list) and len(ours) == len(theirs):
        pairs = ((one, other) for one, other in zip(ours, theirs, strict=True) if one != other)
        return _first_difference(*next(pairs))
    return f"{quote(theirs)} in the file, {quote(ours)} now"


def header_of(config: EnsembleConfig, tasks: Sequence[Task]) -> Header:
    """Returns the header of a run.

    Args:
        config: The ensemble.
        tasks: What is asked.
    """
    settings = ("combine", "gate_rule", "alignment", "commit", "deterministic")
    ensemble = {key: getattr(config, key) for key in settings}
    if isinstance(config.weights, str):
        ensemble["weights"] = config.weights
    if isinstance(config.calibration, Calibration):
        ensemble["calibration"] = {name: member.weight for name, member in config.calibration.members.items()}
    if config.gate is not None:
        ensemble["gate"] = config.gate
    return Header(
        {task.name: task.questions.digest for task in tasks},
        [{**_set_fields(member, _PLACEMENT), "name": member.called} for member in config.members],
        ensemble,
        {task.name: _set_fields(task.form) for task in tasks},
        {task.name: [metric.name for metric in task.metrics] for task in tasks},
    )


def _set_fields(values: Any, without: Sequence[str] = ()) -> dict[str, Any]:
    """Returns the fields of a dataclass that differ from their defaults."""
    every = {each.name: (getattr(values, each.name), each.default) for each in fields(values)}
    return {name: value for name, (value, default) in every.items() if value != default and name not in without}
