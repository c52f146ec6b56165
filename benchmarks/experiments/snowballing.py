"""Whether a first wrong token is followed to the end: token-level against output-level ensembling.

Run by ``python -m benchmarks.experiments.snowballing``; see docs/experiments.md. Every member alone and the ensembles
answer questions with short answers. Where the best member alone took a wrong turn, its answer up to the first wrong
token is then given to all of them as the beginning of theirs. Answers are appended to a file; a run with the same file
continues where the last one ended.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from benchmarks.experiments.answers import AnswerFile, TokenAnswer, answer_all
from benchmarks.experiments.data import DATASETS, read_sets, short_answer_task
from benchmarks.experiments.plots import OUT
from benchmarks.experiments.snowballing_report import TaskAnswers, best_member, plot, report
from benchmarks.experiments.wrong_tokens import judge
from benchmarks.real_accuracy import BATCH, REAL
from gac_core import Ensemble
from gac_core.evaluation.questions import Question
from gac_core.evaluation.run import Task
from gac_core.evaluation.settings import Setting, alone, every_step, parse_weights


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


def ask(ensemble: Ensemble, task: Task, settings: Sequence[Setting], file: AnswerFile) -> TaskAnswers:
    """Answers the questions of a task: freely, and after the wrong beginnings of the best member."""
    questions: Sequence[Question] = task.questions.questions
    answer_all(ensemble, task, settings, [(question, "") for question in questions], file)
    free = {
        setting.label: [file.answers[task.name, question.id, setting.label, ""] for question in questions]
        for setting in settings
    }
    best = best_member({member: free[member] for member in ensemble.names})
    begun = [(q, wrong_beginning(each, q.answers)) for q, each in zip(questions, free[best], strict=True)]
    asked = [(question, text) for question, text in begun if text is not None]
    compared = [setting for setting in settings if setting.is_ensemble or setting.label == best]
    answer_all(ensemble, task, compared, asked, file)
    after = {
        setting.label: [file.answers[task.name, question.id, setting.label, text] for question, text in asked]
        for setting in compared
    }
    accepted = {question.id: question.answers for question in questions}
    return TaskAnswers(task.name, accepted, ensemble.names, best, free, after)


def main() -> None:
    """Answers, prints the tables and draws the plot."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", nargs="+", default=["squad", "triviaqa"], help="squad, triviaqa, nq")
    parser.add_argument("--data", type=Path, default=DATASETS, help="folder of the public benchmarks")
    parser.add_argument("--questions", type=int, nargs="+", default=[200], help="one number, or one per task")
    parser.add_argument("--members", nargs="+", default=["smollm2", "gemma3", "qwen"], help=f"folders in {REAL}")
    parser.add_argument("--weights", nargs="+", default=["1:1:1", "1:3:3"], help="one ensemble each")
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--cache-gib", type=float, default=0.75)
    parser.add_argument("--answers", type=Path, default=Path("snowballing.jsonl"), help="kept answers; appended to")
    parser.add_argument("--out", type=Path, default=OUT, help="folder for snowballing.svg")
    args = parser.parse_args()
    counts = args.questions * len(args.tasks) if len(args.questions) == 1 else args.questions
    sets = read_sets(args.data)
    tasks = [short_answer_task(sets[name], count) for name, count in zip(args.tasks, counts, strict=True)]
    weights = [parse_weights(text, args.members) for text in args.weights]
    settings = [*map(alone, args.members), *(every_step(args.members, each) for each in weights)]
    file = AnswerFile(args.answers)
    models = [str(REAL / name) for name in args.members]
    limits = {"max_batch_size": BATCH, "cache_gib": args.cache_gib}
    with Ensemble.load(models, dtype=args.dtype, drafts=(), **limits) as ensemble:
        answered = [ask(ensemble, task, settings, file) for task in tasks]
    for each in answered:
        print(f"\n{report(each)}")
    plot(answered, args.out / "snowballing.svg")


if __name__ == "__main__":
    main()
