"""Chunked prefill: splits a budget of tokens per step over long sequences, so that other requests keep running."""

from __future__ import annotations

from collections.abc import Sequence


def share(lengths: Sequence[int], budget: int) -> list[int]:
    """Splits a budget of tokens over sequences.

    The oldest sequence gets at least half of the budget, so that it always progresses; of the others the shortest come
    first, so that they do not wait behind a long one.

    Args:
        lengths: Remaining tokens of each sequence, the oldest sequence first.
        budget: Tokens to compute in this step, 2 or more.

    Returns:
        Tokens of each sequence to compute now, 0 or more.
    """
    if not lengths:
        return []
    shares = [0] * len(lengths)
    shares[0] = min(lengths[0], max(budget // 2, budget - sum(lengths[1:])))
    left = budget - shares[0]
    for index in sorted(range(1, len(lengths)), key=lambda i: lengths[i]):
        shares[index] = min(lengths[index], left)
        left -= shares[index]
    return shares


def share_parts(starts: Sequence[int], lengths: Sequence[int], budget: int) -> list[int]:
    """Splits a budget of tokens over sequences in fixed parts: where a sequence is split depends on it alone.

    Parts end at multiples of half of the budget. The order is that of `share`.

    Args:
        starts: Position of each sequence's first token to compute, the oldest sequence first.
        lengths: Remaining tokens of each sequence.
        budget: Tokens to compute in this step, 2 or more.

    Returns:
        Tokens of each sequence to compute now: its next part, or 0.
    """
    part = budget // 2
    nexts = [min(length, part - start % part) for start, length in zip(starts, lengths, strict=True)]
    shares = [0] * len(nexts)
    left = budget
    for index in sorted(range(len(nexts)), key=lambda i: (i > 0, lengths[i])):
        if nexts[index] <= left:
            shares[index] = nexts[index]
            left -= nexts[index]
    return shares
