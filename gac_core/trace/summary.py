"""What a page shows besides tokens: figures, settings, costs and notes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from gac_core.output import RequestOutput


@dataclass(frozen=True)
class Figure:
    """A number with its meaning.

    Attributes:
        name: What it is.
        value: The number, formatted.
        help: What it means.
    """

    name: str
    value: str
    help: str


@dataclass(frozen=True)
class Cost:
    """The work of one member.

    Attributes:
        member: Its name.
        index: Its place among the members that take part.
        weight: Its share of the weights, 0 to 1.
        cells: Prompt tokens, forwards, tokens computed, tokens reused, and seconds for the ensemble's answer; forwards
            and seconds for its answer alone, as far as there is one.
    """

    member: str
    index: int
    weight: float
    cells: tuple[str, ...]


COST_HEADERS = ("prompt tokens", "forwards", "tokens computed", "tokens reused", "seconds", "forwards alone", "s alone")


def figures(output: RequestOutput) -> list[Figure]:
    """Returns the most important numbers of an answer."""
    stats = output.stats
    found = [
        Figure("tokens", f"{output.usage.completion_tokens}", "Generated tokens of the union vocabulary."),
        Figure("confidence", _percent(stats.confidence), "Mean probability of the selected tokens."),
    ]
    if stats.agreement is not None:
        text = "Mean share of the members whose most probable token was selected, where several were combined."
        if output.document_shares:
            text = "Mean share of the documents whose most probable token was selected, where several were combined."
        found.append(Figure("agreement", _percent(stats.agreement), text))
    if stats.divergence is not None:
        text = "Mean Jensen-Shannon divergence of the members' distributions, in nats: 0 where they are equal."
        found.append(Figure("divergence", f"{stats.divergence:.3f}", text))
    if output.doubt is not None and output.doubt.share is not None:
        text = "Share of the document that most probably carried the answer."
        found.append(Figure("best document", _percent(output.doubt.share), text))
        if output.doubt.not_in_documents is not None:
            text = "Calibrated probability that the documents do not contain the answer."
            found.append(Figure("not in documents", _percent(output.doubt.not_in_documents), text))
    if stats.settings.threshold is not None:
        text = "Share of the steps that combined all members; the gate decided the others alone."
        found.append(Figure("ensembled", _percent(stats.share_ensembled), text))
    if stats.forced:
        found.append(Figure("forced", f"{stats.forced}", "Tokens that the grammar forced, without a forward."))
    found.append(Figure("seconds", f"{stats.total_seconds:.2f}", "From the request's arrival to its end."))
    return found


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{share:.0%}"


def settings_of(output: RequestOutput) -> dict[str, str]:
    """Returns the settings that applied, as text by name."""
    settings = output.stats.settings
    found = {
        "gate": settings.gate,
        "threshold": "none: every step is ensembled" if settings.threshold is None else f"{settings.threshold:g}",
        "combine": settings.combine,
        **({} if settings.combine_documents is None else {"combine documents": settings.combine_documents}),
        "gate rule": settings.gate_rule,
        "alignment": settings.alignment,
        "commit": settings.commit,
        "temperature": f"{settings.temperature:g}",
        "deterministic": "yes" if settings.deterministic else "no",
        "drafted, accepted": f"{output.stats.drafted}, {output.stats.accepted}",
    }
    if settings.seed is not None:
        found["seed"] = str(settings.seed)
    return found


def costs(output: RequestOutput, alone: Mapping[str, RequestOutput]) -> list[Cost]:
    """Returns the work of each member for an answer, and for its answer alone."""
    found = []
    for index, (name, weight) in enumerate(output.stats.settings.weights.items()):
        own = output.stats.members[name]
        cells = [own.prompt_tokens, own.forwards, own.tokens, own.reused_tokens]
        values = [*map(str, cells), f"{own.seconds:.2f}"]
        if name in alone:
            other = alone[name].stats.members[name]
            values += [str(other.forwards), f"{other.seconds:.2f}"]
        found.append(Cost(name, index, weight, tuple(values)))
    return found


def notes(output: RequestOutput) -> list[str]:
    """Returns what is unusual about an answer, as sentences."""
    stats = output.stats
    found = [f"{name} was left out of the rest of the answer: {reason}." for name, reason in stats.left_out.items()]
    for each in stats.dropped:
        back = "" if each.rejoined_at is None else f" It took part again from token {each.rejoined_at + 1} on."
        found.append(f"{each.member} failed at token {each.at_token + 1}: {each.reason}.{back}")
    if output.finish_reason.value == "length":
        found.append("The answer was cut off: max_tokens or the end of a member's context was reached.")
    if output.stopped_by is not None:
        found.append(f"The answer ended at the stop string {output.stopped_by!r}, which its text does not contain.")
    return found
