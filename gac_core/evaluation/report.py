"""Reports of evaluations as blocks of text and tables, rendered as Markdown or HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from gac_core.evaluation.comparing import MAX_SAMPLES, MIN_SAMPLES
from gac_core.evaluation.questions import Question
from gac_core.evaluation.recommend import Recommendation, nothing_right, points, relative
from gac_core.evaluation.results import Results
from gac_core.evaluation.statistics import Interval
from gac_core.evaluation.summary import Row, Scores, Table

WRONG_HEADS = ("question", "accepted answers", "answered by", "answer")
HEADS = ("answered by", "score", "against the best member", "relative", "ensembled steps", "forwards", "ms per answer")
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:75rem;margin:2rem auto;padding:0 1rem;color:#222}"
    "table{border-collapse:collapse;margin:1rem 0;font-size:.9rem}th,td{border:1px solid #ccc;padding:.3rem .6rem;"
    "text-align:left;vertical-align:top}th{background:#f2f2f2}.first{background:#eef5ee;padding:.8rem 1rem}"
)


@dataclass(frozen=True)
class Block:
    """A part of a report.

    Attributes:
        text: A heading or a paragraph; above a table its title.
        level: Level of a heading, from 1; 0: a paragraph.
        table: Rows of cells, the first one with the heads of the columns; empty without a table.
    """

    text: str
    level: int = 0
    table: tuple[tuple[str, ...], ...] = ()


def report(
    results: Results,
    tables: Sequence[Table],
    recommendation: Recommendation | None,
    cached: bool = True,
    questions: Mapping[tuple[str, str], Question] | None = None,
) -> list[Block]:
    """Returns the report of an evaluation.

    Args:
        results: The answers.
        tables: Tables of them, from `gac_core.evaluation.summary.tables`.
        recommendation: What to use; None if there was nothing to compare.
        cached: Whether prompts that one setting had computed were reused by the next one. Default True.
        questions: By task and id, for examples of answers that differ or are all wrong. Default: no examples.
    """
    names = [member["name"] for member in results.header.members]
    blocks = [Block("Evaluation", 1), Block(_introduction(names, tables))]
    if recommendation is not None:
        blocks += [Block("Recommendation", 2), Block(recommendation.text)]
    else:
        blocks += [Block(text) for text in without_recommendation(tables)]
    blocks.append(Block("Results", 2))
    for table in reversed(tables):
        blocks.append(Block(_title(table), 0, table_cells(table, names)))
    blocks += _wrong(results, tables, questions or {})
    blocks += [Block(text) for text in _notes(tables, names, cached)]
    if recommendation is not None and questions:
        blocks += _differences(results, recommendation, questions)
    return blocks


def without_recommendation(tables: Sequence[Table]) -> list[str]:
    """Returns what is said where one member was measured, so that there is nothing to recommend."""
    wrong = [nothing_right(tables[-1].questions)] if _all_wrong(tables[-1]) else []
    return [
        "There is one model, so that nothing was compared: give two models or more to measure an ensemble of them.",
        *wrong,
    ]


def _introduction(names: Sequence[str], tables: Sequence[Table]) -> str:
    counts = ", ".join(f"{table.questions:,} of {table.task}" for table in tables if table.task in _tasks(tables))
    if len(names) == 1:
        return f"One language model ({names[0]}) answered questions with known answers: {counts}."
    models = f"{', '.join(names[:-1])} and {names[-1]}"
    return (
        f"{len(names)} language models ({models}) answered questions with known answers: {counts}. Each model answered "
        "them alone, and they answered together as an ensemble, which combines their probabilities of the next token "
        "at every step, or only where one of them, the gate, is less sure than a threshold."
    )


def _tasks(tables: Sequence[Table]) -> set[str]:
    return {table.task for table in (tables[:-1] if len(tables) > 1 else tables)}


def _title(table: Table) -> str:
    best = f"; best member alone: {table.best}" if table.best else ""
    return f"{table.task}: {table.questions:,} questions, score: {table.metric}{best}"


def table_cells(table: Table, names: Sequence[str]) -> tuple[tuple[str, ...], ...]:
    """Returns a table as text, with the heads of its columns as the first row."""
    others = list(table.rows[0].others)
    return ((*HEADS[:2], *others, *HEADS[2:]), *(_cells(row, others, names) for row in table.rows))


def _cells(row: Row, others: Sequence[str], names: Sequence[str]) -> tuple[str, ...]:
    forwards = " / ".join(f"{row.cost.forwards.get(name, 0):.1f}" for name in names)
    errors = f" ({row.errors} failed)" if row.errors else ""
    return (
        row.setting.label + (" alone" if row.setting.alone and row.setting.samples == 1 else ""),
        _percent(row.score) + errors,
        *(f"{row.others[name]:.1%}" for name in others),
        "best" if row.comparison is None else points(row.comparison.difference).replace(" points", ""),
        "" if row.comparison is None else relative(row.comparison),
        f"{row.cost.share_ensembled:.0%}",
        forwards,
        f"{1000 * row.cost.seconds:,.0f}",
    )


def _percent(interval: Interval) -> str:
    return f"{interval.value:.1%} [{interval.low:.1%}, {interval.high:.1%}]"


def _notes(tables: Sequence[Table], names: Sequence[str], cached: bool) -> list[str]:
    """Returns what the columns mean."""
    notes = [
        "Score: mean of the metric over the questions; exact, contains, choice, number and regex give 1 for a right "
        "answer and 0 for a wrong one, f1 the overlap of words with the accepted answer. Square brackets are 95% "
        "intervals of a paired bootstrap over questions (10,000 resamples, each task by itself): another sample of "
        "such questions would give a value in this range. A difference whose interval includes 0 is not shown.",
        "Against the best member: difference to the member with the highest score alone, in points of 100; relative: "
        "the same difference divided by that member's score. The best of several settings on the same questions looks "
        "better than it is; the recommendation says how it avoids this.",
        f"Cost: ensembled steps is the share of steps that combined all members; forwards are passes of "
        f"{' / '.join(names)} per answer. A long prompt may be read in several passes, and in more of them the busier "
        "the machine is; ensembled steps do not depend on that.",
        "Times are those of batches on this machine. "
        + (
            "Settings reuse prompts that earlier settings have computed, so that times are not comparable between "
            "settings (--no-cache measures comparable ones)."
            if cached
            else "No setting reused prompts of another, so that times are comparable."
        ),
    ]
    if any(row.setting.samples > 1 for row in tables[0].rows):
        notes.append(
            "Samples: the model answers several times at a temperature above 0, and the most frequent answer counts "
            "(self-consistency). Their number is such that they cost about as much as the first ensemble, in "
            f"steps of each member times the size of its weights, from {MIN_SAMPLES} to {MAX_SAMPLES} samples."
        )
    return notes


def _all_wrong(table: Table) -> bool:
    return not any(row.score.value for row in table.rows)


def _wrong(
    results: Results, tables: Sequence[Table], questions: Mapping[tuple[str, str], Question], count: int = 3
) -> list[Block]:
    """Returns some questions of each task without a right answer: accepted answers, and those of the first setting."""
    rows = []
    for table in tables:
        if table.task in _tasks(tables) and _all_wrong(table):
            answers = results.of(table.rows[0].setting.label, table.task)
            asked = [(questions[each.key[1:]], each) for each in answers if each.key[1:] in questions]
            rows += [
                (_short(question.question), _short(" | ".join(question.answers)), answer.setting, _short(answer.text))
                for question, answer in asked[:count]
            ]
    if not rows:
        return []
    return [Block("Some answers without a right one:", 0, (WRONG_HEADS, *rows))]


def _differences(
    results: Results, recommendation: Recommendation, questions: Mapping[tuple[str, str], Question], count: int = 3
) -> list[Block]:
    """Returns questions on which the recommended ensemble and the best member differ."""
    setting, member = recommendation.setting, recommendation.member
    scores = Scores(results, [setting, member])
    pairs = [*zip(scores.keys, scores.answers(setting), scores.answers(member), strict=True)]
    won = [each for each in pairs if each[1].score - each[2].score >= 0.5][:count]
    lost = [each for each in pairs if each[2].score - each[1].score >= 0.5][:count]
    rows = [
        (
            verdict,
            _short(questions[key].question if key in questions else key[1]),
            _short(ours.text),
            _short(theirs.text),
        )
        for verdict, part in (("gained", won), ("lost", lost))
        for key, ours, theirs in part
    ]
    if not rows:
        return []
    heads = ("", "question", setting.label, f"{member.label} alone")
    return [Block("Answers that differ", 2), Block("The first of each kind.", 0, (heads, *rows))]


def _short(text: str, most: int = 160) -> str:
    text = " ".join(text.split())
    return text if len(text) <= most else f"{text[:most]}…"


def as_markdown(blocks: Sequence[Block]) -> str:
    """Returns a report as Markdown."""
    parts = []
    for block in blocks:
        parts.append(f"{'#' * block.level} {block.text}" if block.level else _escaped(block.text))
        if block.table:
            lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in block.table]
            parts.append("\n".join([lines[0], "|" + "---|" * len(block.table[0]), *lines[1:]]))
    return "\n\n".join(parts) + "\n"


def _escaped(text: str) -> str:
    for mark in ("\\", "|", "*", "_", "<", "`"):
        text = text.replace(mark, "\\" + mark)
    return text


def as_html(blocks: Sequence[Block]) -> str:
    """Returns a report as one self-contained page."""
    parts = []
    for block in blocks:
        tag = f"h{block.level}" if block.level else "p"
        parts.append(f"<{tag}>{escape(block.text)}</{tag}>")
        if block.table:
            head, *rows = block.table
            shown = ["<table><thead><tr>", *(f"<th>{escape(cell)}</th>" for cell in head), "</tr></thead><tbody>"]
            for row in rows:
                shown += ["<tr>", *(f"<td>{escape(cell)}</td>" for cell in row), "</tr>"]
            parts.append("".join([*shown, "</tbody></table>"]))
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Evaluation</title>'
        f"<style>{_STYLE}</style></head><body>\n{body}\n</body></html>\n"
    )
