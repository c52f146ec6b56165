"""What the commands that answer questions share: the configuration, tasks of data files, and progress bars."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from gac_core.config import EnsembleConfig
from gac_core.errors import listed, quote
from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.metrics import default_metric, metric_named
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import read_sets
from gac_core.evaluation.settings import Setting
from gac_core.evaluation.task import Task, make_task
from gac_core.loading import configured


def configuration(
    models: Sequence[str], dtype: str | None = None, batch: int | None = None, cache: bool = True
) -> EnsembleConfig:
    """Returns the ensemble of a command: one YAML file, or several models.

    Args:
        models: The arguments.
        dtype: For members that do not set their own.
        batch: Requests at once. Default: as configured.
        cache: Whether prompts are reused between settings.

    Raises:
        ConfigError: It is wrong.
    """
    changes: dict[str, Any] = {} if cache else {"cache_gib": 0.0, "document_cache_gib": 0.0}
    if batch is not None:
        changes["max_batch_size"] = batch
    if len(models) == 1 and models[0].endswith((".yaml", ".yml")):
        config = EnsembleConfig.from_yaml(models[0])
        members = tuple(
            replace(member, dtype=dtype) if dtype and member.dtype == "auto" else member for member in config.members
        )
        return replace(config, members=members, **changes)
    return configured(list(models), dtype=dtype, **changes)


def option_values(data: Sequence[Path], options: Mapping[str, Sequence[str]]) -> dict[str, dict[str, list[str]]]:
    """Returns the values of options for each data file, by option and name of the file.

    ``NAME=VALUE`` is for the data file of this name (without its extension) alone, and goes before values for all.

    Raises:
        EvaluationError: No data file has a name.
    """
    names = [path.stem for path in data]
    values: dict[str, dict[str, list[str]]] = {}
    for option, given in options.items():
        own: dict[str, list[str]] = {}
        shared = []
        for text in given:
            name, equals, value = text.partition("=")
            if equals and name in names:
                own.setdefault(name, []).append(value)
            elif equals and ":" not in name:
                # Patterns and functions have their colon first: regex:a=(.*).
                raise EvaluationError(
                    f"--{option.replace('_', '-')} {text}: no data file is called {quote(name)}; data files are: "
                    f"{listed(names)} (names without extension)"
                )
            else:
                shared.append(text)
        values[option] = {name: own.get(name, shared) for name in names}
    return values


def load_tasks(
    data: Sequence[Path],
    form: str,
    instruction: str | None,
    metric: Sequence[str] | None = None,
    shots: Sequence[str] | None = None,
    max_tokens: Sequence[str] | None = None,
    stop: Sequence[str] | None = None,
    limit: int | None = None,
    half: str | None = None,
) -> list[Task]:
    """Returns the tasks of data files.

    Args:
        data: The files.
        form: ``"chat"`` or ``"plain"``.
        instruction: As in `PromptForm`.
        metric: Names of metrics, each for all files or for one (`option_values`). Default: one that fits the questions.
        shots: Number of examples, likewise. Default: that of the form.
        max_tokens: Tokens of an answer, likewise. Default: that of the form.
        stop: As in `PromptForm`. Default: that of the form.
        limit: Maximum number of questions of each file.
        half: As in `QuestionSet.limited`.

    Raises:
        EvaluationError: Something cannot be used.
    """
    if half not in (None, "choose", "report"):
        raise EvaluationError(f"half must be choose or report, not {quote(half)}")
    values = {"metric": metric or (), "shots": shots or (), "max_tokens": max_tokens or ()}
    options = option_values(data, values)
    tasks = []
    for questions in read_sets(data):
        name = questions.name
        metrics = [metric_named(each) for each in options["metric"][name] or [default_metric(questions)]]
        examples, most = (_number(option, options[option][name]) for option in ("shots", "max_tokens"))
        solutions = metrics[0].name == "number" and any("####" in each for each in questions.questions[0].answers)
        prompts = PromptForm(form, instruction, examples, most, tuple(stop) if stop else None, solutions)  # type: ignore[arg-type]
        task = make_task(questions, prompts, metrics)
        kept = task.questions.limited(limit, half)  # type: ignore[arg-type]
        if not kept.questions:
            raise EvaluationError(f"{questions.path} has no questions of the half {half}; leave --half out")
        tasks.append(replace(task, questions=kept))
    return tasks


def _number(option: str, values: Sequence[str]) -> int | None:
    try:
        return int(values[-1]) if values else None
    except ValueError:
        raise EvaluationError(
            f"--{option.replace('_', '-')} must be a number or FILE=NUMBER, where FILE is the name of a data file "
            f"without its extension, not {listed(map(quote, values))}"
        ) from None


def tables_console(width: int) -> Console:
    """Returns where tables are printed, which takes names in square brackets as they are.

    Args:
        width: Number of columns where the output is no terminal.
    """
    console = Console(markup=False)
    return console if console.is_terminal else Console(width=width, markup=False)


class EvaluationProgress(Progress):
    """A progress bar for each part of an evaluation, on stderr."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
        )
        setting = TextColumn("{task.fields[setting]}", markup=False)
        super().__init__(*columns, TimeRemainingColumn(), setting, console=Console(stderr=True))

    def began(self, what: str, total: int) -> None:
        """Adds the bar of a part."""
        for before in self.task_ids:
            self.stop_task(before)
        self._current = self.add_task(what, total=total, setting="")

    def answered(self, setting: Setting, count: int) -> None:
        """Advances the current bar by a number of answers."""
        self.update(self._current, advance=count, setting=setting.label)

    def reached(self, what: str, done: int, total: int) -> None:
        """Shows how far a part is."""
        if not self.tasks or self.tasks[-1].description != what:
            self.began(what, total)
        self.update(self._current, completed=done)
