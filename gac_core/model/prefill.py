"""How the members' reading of long texts is spread over steps, so that it does not stall what else runs.

Pure functions on lengths.
"""

from __future__ import annotations

from collections.abc import Sequence


def share(lengths: Sequence[int], budget: int) -> list[int]:
    """Splits a budget of tokens over texts that want to be read.

    The oldest text gets at least half of the budget, so that it is always done some time; of the others the shortest
    come first, so that they do not wait behind a long one.

    Args:
        lengths: Tokens that each text still has, the oldest text first.
        budget: Tokens to read in this step, 2 or more.

    Returns:
        Tokens of each text to read now, 0 or more.
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
    """Splits a budget of tokens over texts in fixed parts: where a text is split depends on that text alone.

    Parts end at multiples of half of the budget. Who comes first is decided as by `share`.

    Args:
        starts: Position of each text's first token to read, the oldest text first.
        lengths: Tokens that each text still has.
        budget: Tokens to read in this step, 2 or more.

    Returns:
        Tokens of each text to read now: its next part, or 0.
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
