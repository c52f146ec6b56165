"""Names of the combination and gate rules, checked without importing torch; `gac_core.combination` has the rules."""

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

GATE_NAMES = ("confidence", "margin", "entropy", "consensus")
"""The first keys of `gac_core.combination.GATES`, to which others may be added."""


def _known(table: str, own: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the names in a table of `gac_core.combination`; where it is not imported yet, it has our own alone."""
    # Another thread may be importing it.
    return tuple(getattr(sys.modules.get("gac_core.combination.tables"), table, own))


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


def check_gate_rule(error: type[GaCError], value: object) -> str:
    """Returns the name of a gate rule; raises an error of a class, with the known names, if unknown."""
    return check_option(error, "gate_rule", value, _known("GATES", GATE_NAMES))


def check_rules(error: type[GaCError], combine: str | None, gate_rule: str | None) -> None:
    """Raises an error of a class if a gate rule has no meaning with a combination rule; None: not given."""
    if gate_rule == "consensus" and combine not in (None, "arithmetic"):
        raise error(
            "gate_rule='consensus' tells what is certain in combine='arithmetic' alone, not in "
            f"combine={quote(combine)}; give gate_rule='confidence', or combine='arithmetic'"
        )
