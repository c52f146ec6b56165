"""A recommendation in words: which setting to use, or to use the best member alone."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Literal

from gac_core.evaluation.errors import EvaluationError
from gac_core.evaluation.questions import half_of
from gac_core.evaluation.results import Results
from gac_core.evaluation.settings import Setting
from gac_core.evaluation.statistics import Comparison, Interval, questions_needed
from gac_core.evaluation.summary import Scores

TOLERANCE = 0.01
"""Score that a cheaper setting may lose on the questions on which settings are chosen."""

MIN_DIFFERENT = 6
"""Questions with different scores below which nothing is shown: even if all of them favour one side, a sign test at the
5% level needs six, and the bootstrap is too sure of fewer."""

Verdict = Literal["ensemble", "alone", "undecided", "none"]


@dataclass(frozen=True)
class Recommendation:
    """What to use.

    Attributes:
        verdict: ``"ensemble"``: the setting is better than the best member alone, and the interval excludes 0.
            ``"alone"``: the best member has the same score or a higher one. ``"undecided"``: the setting has the higher
            score, and the interval includes 0 or fewer than six questions have different scores. ``"none"``: every
            answer of every setting has the score 0.
        setting: The best ensemble setting, or the cheapest one that is not shown to be worse than it.
        member: The best member alone, on the questions of the comparison.
        comparison: The setting against this member.
        questions: Number of questions of the comparison.
        held_out: Whether these are other questions than those on which the setting was chosen.
        saved: Share of the steps that were not ensembled.
        text: The recommendation in words.
    """

    verdict: Verdict
    setting: Setting
    member: Setting
    comparison: Comparison
    questions: int
    held_out: bool
    saved: float
    text: str


def recommend(
    results: Results,
    settings: Sequence[Setting],
    chosen: Setting | None = None,
    tried: int | None = None,
    keys: Collection[tuple[str, str]] | None = None,
) -> Recommendation:
    """Returns a recommendation.

    If there are several ensemble settings and questions of both halves, the setting is chosen on one half and compared
    with the best member on the other.

    Args:
        results: The answers.
        settings: The settings, members alone among them.
        chosen: The setting, if it was chosen on the first half already; it is compared on the other half alone.
        tried: Among how many it was chosen. Default: the ensembles of ``settings``.
        keys: Only questions with these tasks and ids. Default: all in the results.

    Raises:
        EvaluationError: There is no member alone or no ensemble to compare.
    """
    ensembles = [setting for setting in settings if setting.is_ensemble]
    scores = Scores(results, settings, keys=keys)
    if not ensembles or scores.best_member() is None:
        raise EvaluationError("a recommendation needs a member alone and an ensemble")
    both = len({half_of(*key) for key in scores.keys}) == 2
    held_out = chosen is not None or (both and len(ensembles) > 1)
    if chosen is None:
        chosen = choose(Scores(results, settings, half="choose", keys=keys) if held_out else scores, ensembles)
    reported = Scores(results, settings, half="report", keys=keys) if held_out else scores
    member = reported.best_member()
    assert member is not None
    comparison = reported.compare(chosen, member)
    saved = 1 - reported.cost(chosen).share_ensembled
    if not any(scores.mean(setting) for setting in settings):
        text = nothing_right(len(scores.keys))
        return Recommendation("none", chosen, member, comparison, len(reported.keys), held_out, saved, text)
    verdict = _verdict(reported, chosen, member, comparison)
    text = " ".join(
        [
            _sentence(verdict, chosen, member, reported, comparison, saved, held_out),
            _basis(reported, held_out, tried or len(ensembles)),
            *_by_task(results, reported, settings, chosen, member),
            *_baseline(reported, chosen),
        ]
    )
    return Recommendation(verdict, chosen, member, comparison, len(reported.keys), held_out, saved, text)


def nothing_right(questions: int) -> str:
    """Returns what to do where every answer to a number of questions has the score 0."""
    return (
        f"No setting had a right answer on these {questions:,} questions, so that nothing can be compared. Read some "
        "of the answers. If they are right, choose a metric that accepts them (--metric, for example contains for "
        "answers in sentences); if not, change the prompt (--form, --instruction, --shots, --max-tokens), or "
        "take other models or easier questions."
    )


def _verdict(scores: Scores, chosen: Setting, member: Setting, comparison: Comparison) -> Verdict:
    if comparison.difference.low > 0 and _different(scores, chosen, member) >= MIN_DIFFERENT:
        return "ensemble"
    return "undecided" if comparison.difference.value > 0 else "alone"


def _different(scores: Scores, chosen: Setting, member: Setting) -> int:
    """Returns the number of questions on which two settings have different scores."""
    return sum(ours != theirs for ours, theirs in zip(scores.of(chosen), scores.of(member), strict=True))


def choose(scores: Scores, ensembles: Sequence[Setting]) -> Setting:
    """Returns the setting with the highest mean score, or a cheaper one that is about as good.

    Of the settings that are not shown to be worse than the best one (the paired interval includes 0) and whose mean is
    at most 0.01 below, the one with the fewest evaluations of members (`Cost.evaluations`); of equal ones the better.
    """
    best = max(ensembles, key=scores.mean)

    def usable(setting: Setting) -> bool:
        difference = scores.compare(setting, best).difference
        return difference.high >= 0 and difference.value >= -TOLERANCE

    def price(setting: Setting) -> tuple[float, float]:
        return scores.cost(setting).evaluations, -scores.mean(setting)

    return min((setting for setting in ensembles if setting == best or usable(setting)), key=price)


def _sentence(
    verdict: Verdict,
    chosen: Setting,
    member: Setting,
    scores: Scores,
    comparison: Comparison,
    saved: float,
    held_out: bool,
) -> str:
    against = f"against {member.label} alone"
    gain = (
        f"{points(comparison.difference)} {against}, which has no right answer there"
        if comparison.relative is None
        else f"{relative(comparison)} {against} ({points(comparison.difference)})"
    )
    steps = f", {saved:.0%} fewer ensembled steps" if chosen.threshold is not None else ""
    if verdict == "ensemble":
        return f"Use {described(chosen)}: {gain}{steps}."
    needed = questions_needed(scores.of(chosen), scores.of(member))
    if verdict == "undecided":
        # With halves, as many are needed to choose on.
        count = 2 * needed if needed and held_out else needed
        size = f"; about {count:,} questions would be needed to show a difference of this size" if count else ""
        return (
            f"No difference can be shown with {len(scores.keys):,} questions. The best ensemble found is "
            f"{described(chosen)}: {gain}{steps}{size}."
        )
    worse = comparison.difference.high < 0 and _different(scores, chosen, member) >= MIN_DIFFERENT
    shown = "is better" if worse else "is as good or better"
    return f"Do not ensemble: {member.label} alone {shown}. The best ensemble found, {described(chosen)}: {gain}."


def _basis(scores: Scores, held_out: bool, count: int) -> str:
    if held_out:
        return (
            f"The setting was chosen among {count} on one half of the questions, and these numbers are from the "
            f"{len(scores.keys):,} questions of the other half, so that the choice does not bias them."
        )
    if count > 1:
        return (
            f"The setting was chosen among {count} on the same {len(scores.keys):,} questions, so that its numbers are "
            "too favourable; check them on other questions."
        )
    return f"From {len(scores.keys):,} questions."


def _by_task(
    results: Results, scores: Scores, settings: Sequence[Setting], chosen: Setting, member: Setting
) -> list[str]:
    """Returns the difference on each task, if there are several."""
    tasks = sorted(set(scores.tasks))
    if len(tasks) < 2:
        return []
    shown = []
    for task in tasks:
        part = Scores(results, settings, keys={key for key in scores.keys if key[0] == task})
        shown.append(f"{task} {points(part.compare(chosen, member).difference)}")
    return [f"By task: {'; '.join(shown)}."]


def _baseline(scores: Scores, chosen: Setting) -> list[str]:
    """Returns how the setting compares with self-consistency, if that was measured."""
    parts = []
    for setting in scores.settings:
        if setting.samples == 1:
            continue
        difference = scores.compare(chosen, setting).difference
        verdict = "better" if difference.low > 0 else "worse" if difference.high < 0 else "not shown to be different"
        parts.append(
            f"Against a majority vote of {setting.label} (self-consistency) it is {verdict}: {points(difference)}."
        )
    return parts


def described(setting: Setting) -> str:
    """Returns a setting in the words of a recommendation: ``weights 1:2:4 with gate qwen at 0.7``."""
    how = f"weights {setting.shown_weights}" if setting.shown_weights else "the configured weights"
    how += "".join(f" and {rule}" for rule in (setting.combine, setting.gate_rule) if rule)
    if setting.threshold is None:
        return f"{how} at every step"
    return f"{how} with gate {setting.gate} at {setting.threshold:g}"


def points(interval: Interval) -> str:
    """Returns a difference of scores in points of 100, with its interval."""
    return f"{100 * interval.value:+.1f} points [{100 * interval.low:+.1f}, {100 * interval.high:+.1f}]"


def relative(comparison: Comparison) -> str:
    """Returns a relative difference in per cent, with its interval; a dash where that member has no right answer."""
    if comparison.relative is None:
        return "-"
    interval = comparison.relative
    return f"{interval.value:+.1%} [{interval.low:+.1%}, {interval.high:+.1%}]"
