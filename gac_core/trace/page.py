"""Renders a trace as one HTML page, without scripts and without anything to load."""

from __future__ import annotations

import base64
import functools
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files

from jinja2 import FunctionLoader, StrictUndefined
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup

from gac_core.chat.conversation import Message
from gac_core.output import RequestOutput
from gac_core.trace.documents import citations_of, documents_of
from gac_core.trace.levels import LEVELS
from gac_core.trace.summary import COST_HEADERS, costs, figures, notes, settings_of
from gac_core.trace.tokens import TokenView, token_views
from gac_core.trace.visible import named, pieces

_MOST_CONTESTED = 8
_CONTEXT = 40
_TITLE = 90
MEMBER_COLOURS = 8


@dataclass(frozen=True)
class Answer:
    """One answer of the comparison.

    Attributes:
        name: Who answers: a member, or the ensemble.
        index: The member's place among those that take part; None for the ensemble.
        tokens: Its tokens.
        facts: Length, confidence and time, as text.
        common: How many tokens it has before its text differs from the ensemble's; None for the ensemble itself, and
            where both are the same.
    """

    name: str
    index: int | None
    tokens: tuple[TokenView, ...]
    facts: str
    common: int | None = None


def render(
    prompt: str | Sequence[Message],
    output: RequestOutput,
    alone: Mapping[str, RequestOutput],
    title: str = "",
    texts: Mapping[str, str] | None = None,
) -> str:
    """Returns the page of a trace; arguments as in `gac_core.trace.Trace`, the last its documents."""
    members = list(output.stats.settings.weights)
    documents = documents_of(output, texts)
    tokens = token_views(output, members)
    style = Markup(_stylesheet(tokens, len(members)))
    messages = [("prompt", prompt)] if isinstance(prompt, str) else [(each.role, each.content) for each in prompt]
    return (
        _environment()
        .get_template("page.html")
        .render(
            title=title or _beginning(messages[-1][1]),
            style=style,
            style_hash=_digest(style),
            members=members,
            messages=[(role, pieces(text.encode("utf-8", errors="surrogateescape"))) for role, text in messages],
            tokens=tokens,
            contested=_most_contested(tokens),
            context=lambda token: _context(tokens, token),
            figures=figures(output),
            settings=settings_of(output),
            costs=costs(output, alone),
            cost_headers=COST_HEADERS if alone else COST_HEADERS[:5],
            notes=notes(output),
            answers=_answers(output, alone, members),
            levels=LEVELS,
            several=len(members) > 1 or len(documents) > 1,
            documents=list(documents.values()),
            citations=citations_of(output, documents),
        )
    )


def _beginning(text: str) -> str:
    """Returns the beginning of a text as one line."""
    words = " ".join(text.split())
    return words if len(words) <= _TITLE else words[: _TITLE - 1].rstrip() + "\u2026"


def _answers(output: RequestOutput, alone: Mapping[str, RequestOutput], members: Sequence[str]) -> list[Answer]:
    if not alone:
        return []
    whole = Answer("ensemble", None, token_views(output, members), _facts(output))
    others = [
        Answer(name, members.index(name), token_views(each, members), _facts(each), _common_tokens(output, each))
        for name, each in alone.items()
    ]
    return [whole, *others]


def _facts(output: RequestOutput) -> str:
    sure = output.stats.confidence
    confidence = "" if sure is None else f", confidence {sure:.0%}"
    return f"{output.usage.completion_tokens} tokens{confidence}, {output.stats.total_seconds:.2f} s"


def _common_tokens(one: RequestOutput, other: RequestOutput) -> int | None:
    """Returns how many tokens of the second answer lie within the text that both begin with; None if all do."""
    text, found = b"".join(one.tokens), b""
    if text == b"".join(other.tokens):
        return None
    for count, token in enumerate(other.tokens):
        found += token
        if not text.startswith(found):
            return count
    return len(other.tokens)


def _most_contested(tokens: Sequence[TokenView]) -> list[TokenView]:
    """Returns the tokens at which members differ most, in the order of the text."""
    contested = [token for token in tokens if token.contested]
    contested.sort(key=lambda token: (-(token.divergence or 0.0), token.confidence))
    return sorted(contested[:_MOST_CONTESTED], key=lambda token: token.number)


def _context(tokens: Sequence[TokenView], token: TokenView) -> str:
    """Returns the end of the text before a token, on one line."""
    before = "".join(each.label for each in tokens[max(0, token.number - 1 - _CONTEXT) : token.number - 1])
    return before.replace("\u2423", " ")[-_CONTEXT:]


def _stylesheet(tokens: Iterable[TokenView], members: int) -> str:
    """Returns the styles: those of all pages, and those of the combinations of members that occur."""
    rules = [
        _resource("page.css"),
        *(f".w{width}{{width:{width}%}}.h{width}{{height:{width}%}}" for width in range(101)),
    ]
    for mask in sorted({token.mask for token in tokens if token.kind == "ensembled"}):
        stops = []
        for index in range(members):
            colour = f"var(--m{index % MEMBER_COLOURS})" if mask >> index & 1 else "var(--none)"
            start, end = 100 * index / members, 100 * (index + 1) / members
            stops.append(f"{colour} {start:.2f}% {end:.2f}%")
        rules.append(f".s{mask}{{--strip:linear-gradient(to right,{','.join(stops)})}}")
    return "\n".join(rules)


def _digest(text: str) -> str:
    """Returns the hash by which a content security policy allows a text."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


@functools.cache
def _environment() -> ImmutableSandboxedEnvironment:
    return ImmutableSandboxedEnvironment(
        loader=FunctionLoader(_resource),
        autoescape=True,
        finalize=_shown,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _shown(value: object) -> object:
    """Returns what an expression of the template writes, without hidden characters; autoescape does the rest."""
    return value if isinstance(value, Markup) or not isinstance(value, str) else named(value)


def _resource(name: str) -> str:
    return (files("gac_core.trace") / name).read_text(encoding="utf-8")
