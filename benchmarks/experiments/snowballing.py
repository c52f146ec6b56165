"""Whether a first wrong token is followed to the end: token-level against output-level ensembling.

Run by ``python -m benchmarks.experiments.snowballing ANSWERS --run``; see docs/experiments.md. Every member
alone and the ensembles answer questions with short answers. Where the best member alone took a wrong turn, its answer
up to the first wrong token is then given to it and to the ensembles as the beginning of theirs. Answers are appended to
a file; a run with the same file continues where the last one ended. Tables and plot are of the questions that all
settings have answered.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from benchmarks.experiments.answers import AnswerFile, TokenAnswer, answer_all
from benchmarks.experiments.data import DATASETS, read_sets, short_answer_task
from benchmarks.experiments.plots import OUT
from benchmarks.experiments.snowballing_report import TaskAnswers, best_member, plot, report
from benchmarks.experiments.wrong_tokens import judge
from benchmarks.real_accuracy import BATCH, REAL
from gac_core import Ensemble
from gac_core.evaluation.questions import Question
from gac_core.evaluation.settings import Setting, alone, every_step, parse_weights
from gac_core.evaluation.task import Task


def wrong_beginning(answer: TokenAnswer, accepted: Sequence[str]) -> str | None:
    """Returns an answer up to its first wrong token, this one included.

    Returns:
        None where it took no wrong turn, and where the wrong token ends within a character.
    """
    verdict = judge(answer.token_bytes, accepted)
    if verdict.course != "wrong turn" or verdict.place is None:
        return None
    try:
        return b"".join(answer.token_bytes[: verdict.place + 1]).decode()
    except UnicodeDecodeError:
        return None


def ask(ensemble: Ensemble, task: Task, settings: Sequence[Setting], file: AnswerFile) -> None:
    """Answers the questions of a task: freely, and after the wrong beginnings of the best member."""
    answer_all(ensemble, task, settings, [(question, "") for question in task.questions.questions], file)
    answers = collect(task, settings, file)
    compared = [setting for setting in settings if setting.label in answers.begun]
    answer_all(ensemble, task, compared, wrong_beginnings(task, answers), file)


def wrong_beginnings(task: Task, answers: TaskAnswers) -> list[tuple[Question, str]]:
    """Returns the questions on which the best member took a wrong turn, with the beginning of its answer."""
    questions = {question.id: question for question in task.questions.questions}
    begun = [(questions[each.id], wrong_beginning(each, answers.accepted[each.id])) for each in answers.own]
    return [(question, text) for question, text in begun if text is not None]


def collect(task: Task, settings: Sequence[Setting], file: AnswerFile) -> TaskAnswers:
    """Returns the answers to the questions that all settings have answered."""

    def of(setting: Setting, asked: Sequence[tuple[Question, str]]) -> dict[str, TokenAnswer]:
        keys = [(task.name, question.id, setting.label, text) for question, text in asked]
        return {key[1]: file.answers[key] for key in keys if key in file.answers}

    def shared(found: Mapping[str, Mapping[str, TokenAnswer]]) -> dict[str, list[TokenAnswer]]:
        ids = [id for id in next(iter(found.values())) if all(id in own for own in found.values())]
        return {label: [own[id] for id in ids] for label, own in found.items()}

    free = shared({s.label: of(s, [(question, "") for question in task.questions.questions]) for s in settings})
    members = [setting.label for setting in settings if setting.alone]
    best = best_member({member: free[member] for member in members})
    accepted = {question.id: question.answers for question in task.questions.questions}
    answers = TaskAnswers(task.name, accepted, members, best, free, {})
    asked = wrong_beginnings(task, answers)
    begun = shared({s.label: of(s, asked) for s in settings if s.is_ensemble or s.label == best})
    return replace(answers, begun=begun)


def main() -> None:
    """Answers, prints the tables and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("answers", type=Path, help="JSON lines, one per answer; appended to")
    parser.add_argument("--run", action="store_true", help="answer the questions that the file lacks")
    parser.add_argument("--tasks", nargs="+", default=["squad", "triviaqa"], help="squad, triviaqa, nq")
    parser.add_argument("--data", type=Path, default=DATASETS, help="folder of the public benchmarks")
    parser.add_argument("--questions", type=int, nargs="+", default=[200], help="one number, or one per task")
    parser.add_argument("--members", nargs="+", default=["smollm2", "gemma3", "qwen"], help=f"folders in {REAL}")
    parser.add_argument("--weights", nargs="+", default=["1:1:1", "1:3:3"], help="one ensemble each")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-gib", type=float, default=0.75)
    parser.add_argument("--out", type=Path, default=OUT, help="folder for snowballing.svg")
    args = parser.parse_args()
    counts = args.questions * len(args.tasks) if len(args.questions) == 1 else args.questions
    sets = read_sets(args.data)
    tasks = [short_answer_task(sets[name], count) for name, count in zip(args.tasks, counts, strict=True)]
    weights = [parse_weights(text, args.members) for text in args.weights]
    settings = [*map(alone, args.members), *(every_step(args.members, each) for each in weights)]
    file = AnswerFile(args.answers)
    if args.run:
        models = [str(REAL / name) for name in args.members]
        limits = {"max_batch_size": BATCH, "cache_gib": args.cache_gib}
        with Ensemble.load(models, dtype=args.dtype, drafts=(), **limits) as ensemble:
            for task in tasks:
                ask(ensemble, task, settings, file)
    answered = [collect(task, settings, file) for task in tasks]
    for each in answered:
        print(f"\n{report(each)}")
    plot(answered, args.out / "snowballing.svg")


if __name__ == "__main__":
    main()
