"""Options of commands that set the parameters of requests."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from gac_core.errors import RequestError, quote
from gac_core.evaluation.settings import parse_source


def threshold_argument(text: str) -> float | None:
    """Returns `SamplingParams.threshold` from a number from 0 to 1, or from ``off``.

    Raises:
        RequestError: It is neither.
    """
    if text.strip().lower() == "off":
        return None
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise RequestError(f"threshold must be a number from 0 to 1, or off, not {quote(text)}")
    return value


def request_settings(
    names: Sequence[str],
    weights: str | None = None,
    threshold: str | None = None,
    gate: str | None = None,
    combine: str | None = None,
    combine_documents: str | None = None,
) -> dict[str, Any]:
    """Returns the parameters of requests that options of a command set; None leaves one to the ensemble.

    Args:
        names: Names of the members.
        weights: As `parse_source`.
        threshold: As `threshold_argument`.
        gate: As `SamplingParams.gate`.
        combine: As `SamplingParams.combine`.
        combine_documents: As `SamplingParams.combine_documents`.

    Raises:
        GaCError: An option has another form.
    """
    found: dict[str, Any] = {"gate": gate, "combine": combine, "combine_documents": combine_documents}
    if weights is not None:
        found["weights"] = parse_source(weights, names)
    if threshold is not None:
        found["threshold"] = threshold_argument(threshold)
    return {name: value for name, value in found.items() if value is not None or name == "threshold"}
