"""Reliability diagrams: a PNG with all of them, and a page that opens without network."""

from __future__ import annotations

import html
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gac_core.calibration.reliability import BINS, Reliability
from gac_core.evaluation.errors import EvaluationError

COLUMNS = 3
_STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{padding:.2rem .8rem;text-align:right;border-bottom:1px solid #ddd}"
    "td:first-child,th:first-child,td:nth-child(2),th:nth-child(2){text-align:left}svg{max-width:100%;height:auto}"
)
_TEXT = (
    "An answer's confidence is the product of the probabilities of its tokens. It is reliable if, of the answers with "
    "a confidence near 0.7, about 70% are correct: then the bars end at the diagonal. Bars below it show answers that "
    "are surer than they are right. The expected calibration error (ECE) is the mean distance from the diagonal, "
    "weighted by the number of answers; smaller is better."
)


def write_diagrams(found: Sequence[Reliability], folder: Path) -> list[Path]:
    """Writes ``reliability.png`` and ``reliability.html`` into a folder, which is made.

    Args:
        found: At least one.
        folder: The folder.

    Returns:
        The files.

    Raises:
        EvaluationError: matplotlib is not installed, or a file cannot be written.
    """
    figure = _figure(found)
    svg = io.StringIO()
    figure.savefig(svg, format="svg", metadata={"Date": None})
    paths = [folder / "reliability.png", folder / "reliability.html"]
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(paths[0], dpi=120)
        paths[1].write_text(_page(found, svg.getvalue()), encoding="utf-8")
    except OSError as error:
        raise EvaluationError(f"cannot write the diagrams into {folder}: {error.strerror or error}") from error
    return paths


def _figure(found: Sequence[Reliability]) -> Any:
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise EvaluationError("diagrams need matplotlib: pip install 'gac-ensemble[eval]'") from error
    rows = -(-len(found) // COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 3.8 * rows), layout="constrained")
    axes = figure.subplots(rows, COLUMNS, squeeze=False)
    for index, axis in enumerate(axes.flat):
        if index < len(found):
            _draw(axis, found[index])
        else:
            axis.axis("off")
    return figure


def _draw(axis: Any, own: Reliability) -> None:
    """Draws one diagram: darker bars stand for more answers."""
    most = max(each.count for each in own.bins)
    for each in own.bins:
        if each.count:
            shade = 0.35 + 0.65 * each.count / most
            axis.bar(each.low, each.accuracy, 1 / BINS, align="edge", color="#3467a8", alpha=shade, edgecolor="white")
    axis.plot([0, 1], [0, 1], color="#888888", linestyle="--", linewidth=1)
    axis.set(xlim=(0, 1), ylim=(0, 1), xlabel="confidence", ylabel="share of correct answers")
    domain = f", {own.domain}" if own.domain else ""
    axis.set_title(f"{own.label}{domain}\nECE {own.ece:.3f}, {own.count} answers", fontsize=10, parse_math=False)


def _page(found: Sequence[Reliability], svg: str) -> str:
    rows = "".join(
        f"<tr><td>{html.escape(own.label)}</td><td>{html.escape(own.domain) or 'all'}</td><td>{own.count}</td>"
        f"<td>{own.accuracy:.1%}</td><td>{own.confidence:.1%}</td><td>{own.ece:.3f}</td></tr>"
        for own in found
    )
    names = ("answered by", "questions", "answers", "correct", "confidence", "ECE")
    head = f"<tr>{''.join(f'<th>{name}</th>' for name in names)}</tr>"
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>Reliability</title>'
        f"<style>{_STYLE}</style></head><body><h1>Reliability</h1><p>{_TEXT}</p>"
        f"<table><thead>{head}</thead><tbody>{rows}</tbody></table>{svg[svg.index('<svg') :]}</body></html>\n"
    )
