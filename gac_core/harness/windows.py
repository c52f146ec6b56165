"""Long texts in windows, for log-likelihoods of whole documents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from gac_core.errors import RequestError


@dataclass(frozen=True)
class Window:
    """A part of a text and what is read before it.

    Attributes:
        context: The text before; empty where the whole text begins.
        tokens: The tokens that are scored.
    """

    context: str
    tokens: tuple[bytes, ...]

    @property
    def text(self) -> str:
        """Context and tokens."""
        return self.context + b"".join(self.tokens).decode(errors="replace")


def windows(tokens: Sequence[bytes], limit: int | None, count: Callable[[str], int]) -> list[Window]:
    """Divides a text into windows as lm-evaluation-harness does: each token is scored once.

    The first window begins with the text. Each further one follows the last unit of the one before, which is its
    context; the last one has as much context as fits. Its unit is a token, or several that share a character.

    The size of a window, in units, is that of the context where this suffices for every member, else the largest of 7/8
    of it, 49/64 of it, and so on that does.

    Args:
        tokens: The tokens of the text.
        limit: The longest text that every member can read, in its tokens; None without a limit.
        count: Returns how many tokens a text has for the member that reads most.

    Raises:
        RequestError: Not even a unit with its context fits.
    """
    units = _units(tokens)
    size = len(units) if limit is None else min(len(units), limit)
    while size > 0:
        found = _divided(units, size)
        if limit is None or all(count(window.text) <= limit for window in found):
            return found
        size = size * 7 // 8
    raise RequestError(f"no part of the text fits into the context of {limit} tokens; leave the member out that has it")


def _units(tokens: Sequence[bytes]) -> list[tuple[bytes, ...]]:
    """Groups tokens so that each group is valid UTF-8 where the text is."""
    units: list[tuple[bytes, ...]] = []
    begun: tuple[bytes, ...] = ()
    for token in tokens:
        begun = (*begun, token)
        try:
            b"".join(begun).decode()
        except UnicodeDecodeError:
            continue
        units.append(begun)
        begun = ()
    return [*units, begun] if begun else units


def _divided(units: Sequence[tuple[bytes, ...]], size: int) -> list[Window]:
    """Windows of a size, in units, their context of one unit not included."""
    found = []
    for start in range(0, len(units), size):
        end = min(start + size, len(units))
        # The last window reads back as far as a whole one would.
        first = 0 if not start else min(start - 1, max(0, end - size - 1))
        context = b"".join(token for unit in units[first:start] for token in unit).decode()
        found.append(Window(context, tuple(token for unit in units[start:end] for token in unit)))
    return found
