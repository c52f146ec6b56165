"""The questions of the experiments."""

from __future__ import annotations

import tempfile
from pathlib import Path

from benchmarks.tasks import write_tasks
from gac_core.evaluation.metrics import METRICS
from gac_core.evaluation.prompts import PromptForm
from gac_core.evaluation.questions import QuestionSet, read_questions
from gac_core.evaluation.task import Task, make_task

SHARED = Path(__file__).parent.parent.parent.parent / "shared"
# As `benchmarks.tasks` expects them.
DATASETS = SHARED / "datasets"


def read_sets(datasets: Path) -> dict[str, QuestionSet]:
    """Returns the questions of all tasks of `benchmarks.tasks`, by name.

    Args:
        datasets: Folder of the public benchmarks.
    """
    with tempfile.TemporaryDirectory() as folder:
        write_tasks(datasets, Path(folder))
        return {path.stem: read_questions(path) for path in sorted(Path(folder).glob("*.jsonl"))}


def short_answer_task(questions: QuestionSet, count: int) -> Task:
    """Returns a random sample of questions with short answers, asked in plain text with examples."""
    form = PromptForm("plain", max_tokens=24)
    return make_task(questions.limited(count), form, (METRICS["exact"], METRICS["contains"]))
