"""Names of the rules of combination, over documents and of gates, checked without importing torch.

`gac_core.combination` has the rules.
"""

from __future__ import annotations

import math
import re
import sys

from gac_core.checks import check_option
from gac_core.errors import GaCError, quote

COMBINER_NAMES = ("arithmetic", "geometric", "harmonic", "min", "max", "core", "safe")
"""The first keys of `gac_core.combination.COMBINERS`, to which others may be added."""

POWER = "power:R"
"""The form of a power mean's name."""

DOCUMENT_RULE_NAMES = ("mean", "contrast", "contrast:jsd", "confidence")
"""The first keys of `gac_core.combination.documents.DOCUMENT_RULES`, to which others may be added."""

CONTRAST = "contrast:BETA"
"""The form of the name of a contrast with a given exponent."""

MAX_BETA = 1000.0
"""The largest BETA: its product with any logarithm of a probability is finite in float32."""

GATE_NAMES = ("confidence", "margin", "entropy", "consensus")
"""The first keys of `gac_core.combination.GATES`, to which others may be added."""


def _known(table: str, own: tuple[str, ...], package: str = "combination") -> tuple[str, ...]:
    """Returns the names in a table of a package; where it is not imported yet, it has our own alone."""
    # Another thread may be importing it.
    return tuple(getattr(sys.modules.get(f"gac_core.{package}.tables"), table, own))


def power_exponent(name: str) -> float | None:
    """Returns R of the name ``"power:R"``; None if it is another name, or R is 0 or not finite."""
    number = re.fullmatch(r"power:([+-]?\d+(\.\d+)?(e[+-]?\d+)?)", name)
    exponent = float(number[1]) if number else 0.0
    return exponent if exponent and math.isfinite(exponent) else None


def check_combine(error: type[GaCError], value: object) -> str:
    """Returns the name of a combination rule; raises an error of a class, with the known names, if unknown."""
    known = _known("COMBINERS", COMBINER_NAMES)
    if isinstance(value, str) and (value in known or power_exponent(value) is not None):
        return str.__str__(value)
    names = ", ".join(quote(name) for name in known)
    raise error(
        f"combine must be one of {names}, or {quote(POWER)} with R a finite number other than 0, such as 'power:0.5', "
        f"not {quote(value)}"
    )


def contrast_beta(name: str) -> float | None:
    """Returns BETA of the name ``"contrast:BETA"``; None if it is another name, or BETA is not from 0 to `MAX_BETA`."""
    number = re.fullmatch(r"contrast:(\d+(\.\d+)?(e[+-]?\d+)?)", name)
    beta = float(number[1]) if number else math.inf
    return beta if beta <= MAX_BETA else None


def check_combine_documents(error: type[GaCError], value: object) -> str:
    """Returns the name of a rule over documents; raises an error of a class, with the known names, if unknown."""
    known = _known("DOCUMENT_RULES", DOCUMENT_RULE_NAMES, "combination.documents")
    if isinstance(value, str) and (value in known or contrast_beta(value) is not None):
        return str.__str__(value)
    names = ", ".join(quote(name) for name in known)
    raise error(
        f"combine_documents must be one of {names}, or {quote(CONTRAST)} with BETA from 0 to {MAX_BETA:.0f}, such as "
        f"'contrast:0.5', not {quote(value)}"
    )


def needs_prior(combine_documents: str) -> bool:
    """Whether a rule over documents compares them with a prior."""
    return combine_documents in ("contrast", "contrast:jsd") or contrast_beta(combine_documents) is not None


def check_gate_rule(error: type[GaCError], value: object) -> str:
    """Returns the name of a gate rule; raises an error of a class, with the known names, if unknown."""
    return check_option(error, "gate_rule", value, _known("GATES", GATE_NAMES))


def check_rules(
    error: type[GaCError], combine: str | None, gate_rule: str | None, combine_documents: str | None = None
) -> None:
    """Raises an error of a class if a gate rule has no meaning with the other rules; None: not given."""
    if gate_rule != "consensus":
        return
    for name, value, needed in (
        ("combine", combine, "arithmetic"),
        ("combine_documents", combine_documents, "mean"),
    ):
        if value not in (None, needed):
            raise error(
                f"gate_rule='consensus' tells what is certain in {name}={quote(needed)} alone, not in "
                f"{name}={quote(value)}; give gate_rule='confidence', or {name}={quote(needed)}"
            )
