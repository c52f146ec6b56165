"""Tables and plot of the experiment on wrong tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from benchmarks.experiments.answers import TokenAnswer
from benchmarks.experiments.plots import BLUE, GREEN, GREY, ORANGE, RED, markdown, new_figure, percent, save
from benchmarks.experiments.wrong_tokens import Verdict, judge, majority, most_confident
from gac_core.evaluation.statistics import compare, mean_interval

MAJORITY, CONFIDENT = "majority of complete answers", "most confident complete answer"
OUTCOMES = {
    "right": GREEN,
    "right, then goes on": BLUE,
    "ends early": GREY,
    "wrong turn, repaired": ORANGE,
    "wrong turn, followed to the end": RED,
}


@dataclass(frozen=True)
class TaskAnswers:
    """The answers to the questions of a task; lists are in the order of the questions.

    Attributes:
        task: Its name.
        accepted: Accepted answers by id of the question.
        members: Names of the members.
        best: The member with the most right answers.
        free: By setting, an answer to each question.
        begun: By setting, an answer after each wrong beginning of the best member: the best member and the ensembles.
    """

    task: str
    accepted: Mapping[str, Sequence[str]]
    members: Sequence[str]
    best: str
    free: Mapping[str, Sequence[TokenAnswer]]
    begun: Mapping[str, Sequence[TokenAnswer]]

    @property
    def own(self) -> Sequence[TokenAnswer]:
        """The answers of the best member."""
        return self.free[self.best]

    @property
    def ensembles(self) -> list[str]:
        """Labels of the ensembles."""
        return [label for label in self.free if label not in self.members]

    @cached_property
    def chosen(self) -> dict[str, list[TokenAnswer]]:
        """By rule, the complete answer that is chosen among the members' for each question."""
        chosen: dict[str, list[TokenAnswer]] = {MAJORITY: [], CONFIDENT: []}
        for answers in zip(*(self.free[member] for member in self.members), strict=True):
            by_name = dict(zip(self.members, answers, strict=True))
            confidences = {name: answer.confidence for name, answer in by_name.items()}
            texts = {name: answer.text for name, answer in by_name.items()}
            chosen[MAJORITY].append(by_name[majority(texts, confidences)])
            chosen[CONFIDENT].append(by_name[most_confident(confidences)])
        return chosen

    def verdict(self, answer: TokenAnswer) -> Verdict:
        """Returns the course of an answer without a given beginning."""
        return judge(answer.token_bytes, self.accepted[answer.id])

    def outcome(self, answer: TokenAnswer) -> str:
        """Returns the key of `OUTCOMES` for an answer without a given beginning."""
        course = self.verdict(answer).course
        if course == "goes on":
            return "right, then goes on"
        if course != "wrong turn":
            return course
        return "wrong turn, repaired" if answer.contains else "wrong turn, followed to the end"

    def starts_wrong(self, answer: TokenAnswer) -> bool:
        """Returns whether an answer's first token is a wrong turn."""
        return self.verdict(answer) == Verdict("wrong turn", 0)


def best_member(answers: Mapping[str, Sequence[TokenAnswer]]) -> str:
    """Returns the member with the most right answers; the first of several."""
    return max(answers, key=lambda name: sum(answer.exact for answer in answers[name]))


def report(answers: TaskAnswers) -> str:
    """Returns the tables of a task."""
    head = f"### {answers.task}: {len(answers.own)} questions; best member alone: {answers.best}"
    tables = [accuracy(answers), courses(answers), first_tokens(answers)]
    return "\n\n".join([head, *tables, *([repairs(answers)] if answers.begun[answers.best] else [])])


def accuracy(answers: TaskAnswers) -> str:
    """Returns the table of right answers."""
    own = [float(each.exact) for each in answers.own]
    rows = []
    for label, each in {**answers.free, **answers.chosen}.items():
        scores = [float(answer.exact) for answer in each]
        against = "" if label == answers.best else percent(compare(scores, own).difference, sign="+")
        rows.append(
            [label, percent(mean_interval(scores)), percent(mean_interval([float(a.contains) for a in each])), against]
        )
    any_right = [
        float(any(each)) for each in zip(*([a.exact for a in answers.free[m]] for m in answers.members), strict=True)
    ]
    rows.append(["some member's answer (upper bound)", percent(mean_interval(any_right)), "", ""])
    return markdown(["answered by", "exact", "contains", f"exact against {answers.best}"], rows)


def courses(answers: TaskAnswers) -> str:
    """Returns the table of what becomes of answers."""
    rows = []
    for label, each in {**answers.free, **answers.chosen}.items():
        outcomes = [answers.outcome(answer) for answer in each]
        first = sum(answers.starts_wrong(answer) for answer in each)
        rows.append([label, *(str(outcomes.count(outcome)) for outcome in OUTCOMES), str(first)])
    return markdown(["answered by", *OUTCOMES, "first token wrong"], rows)


def first_tokens(answers: TaskAnswers) -> str:
    """Returns the table of questions whose first token the best member gets wrong, and of those it does not."""
    own = answers.own
    wrong = [place for place, answer in enumerate(own) if answers.starts_wrong(answer)]
    rest = [place for place in range(len(own)) if place not in set(wrong)]
    rows = []
    for label, each in {**{label: answers.free[label] for label in answers.ensembles}, **answers.chosen}.items():
        other = [place for place in wrong if each[place].tokens[:1] != own[place].tokens[:1]]
        better = [place for place in other if not answers.starts_wrong(each[place])]
        worse = [place for place in rest if answers.starts_wrong(each[place])]
        gained = sum(each[place].exact for place in wrong)
        contained = sum(each[place].contains for place in wrong)
        lost = sum(own[place].exact and not each[place].exact for place in rest)
        cells = (len(other), len(better), gained, contained, len(worse), lost)
        rows.append([label, *map(str, cells)])
    header = [
        "answered by",
        f"another first token, of {len(wrong)} wrong ones",
        "and not a wrong one",
        "answer then exact",
        "contains",
        f"first token wrong, of {len(rest)} others",
        "exact answers lost",
    ]
    return markdown(header, rows)


def repairs(answers: TaskAnswers) -> str:
    """Returns the table of answers that continue a wrong beginning."""
    own = [float(answer.contains) for answer in answers.begun[answers.best]]
    rows = []
    for label, each in answers.begun.items():
        scores = [float(answer.contains) for answer in each]
        against = "" if label == answers.best else percent(compare(scores, own).difference, sign="+")
        rows.append([label, f"{sum(map(int, scores))} of {len(scores)}", percent(mean_interval(scores)), against])
    return markdown(["continued by", "repaired", "%", f"against {answers.best}"], rows)


def plot(tasks: Sequence[TaskAnswers], path: Path) -> None:
    """Draws what becomes of the answers, one panel per task."""
    figure, panels = new_figure(9.0, 3.6, len(tasks))
    for axes, answers in zip(panels, tasks, strict=True):
        each = {**answers.free, MAJORITY: answers.chosen[MAJORITY]}
        left = [0.0] * len(each)
        for outcome, colour in OUTCOMES.items():
            widths = [100 * sum(answers.outcome(a) == outcome for a in own) / len(own) for own in each.values()]
            axes.barh(range(len(each)), widths, left=left, color=colour, label=outcome)
            left = [a + b for a, b in zip(left, widths, strict=True)]
        axes.set_yticks(range(len(each)), list(each) if axes is panels[0] else [])
        axes.invert_yaxis()
        axes.set_xlim(0, 100)
        axes.set_xlabel(f"{answers.task}: % of {len(answers.own)} questions")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper center", ncols=3, frameon=False)
    save(figure, path)
