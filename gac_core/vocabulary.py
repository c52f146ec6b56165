"""The union of the members' vocabularies, keyed on bytes, and the alignment of each member with it.

GaC, section 3.2: the mapping matrices of the paper, kept here as index vectors. Knows nothing of models or requests.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence

import torch
from torch import Tensor

from gac_core.tokenizer import MemberTokenizer


class UnionVocabulary:
    """Every byte string that some member holds as one token, and one end of text for all.

    Ids follow the sorted bytes, so that they are the same in every process; the last id is the end of text.

    Args:
        tokenizers: The members' tokenizers.

    Attributes:
        tokens: The byte strings, sorted.
        end_id: The id of the end of text, ``len(tokens)``.
    """

    def __init__(self, tokenizers: Sequence[MemberTokenizer]) -> None:
        held = {data for tokenizer in tokenizers for data in tokenizer.token_bytes if data is not None}
        self.tokens = sorted(held)
        self.end_id = len(self.tokens)
        self.ids = {data: index for index, data in enumerate(self.tokens)}

    def __len__(self) -> int:
        return len(self.tokens) + 1

    def data(self, union_id: int) -> bytes | None:
        """Returns a token's bytes, or None for the end of text."""
        return None if union_id == self.end_id else self.tokens[union_id]

    def starting_with(self, prefix: bytes) -> tuple[int, int]:
        """Returns the range of ids whose tokens start with some bytes: the first, and one past the last."""
        low = bisect_left(self.tokens, prefix)
        if not prefix:
            return low, len(self.tokens)
        # The next byte string that does not start with the prefix: its last byte that can grow, grown by one.
        stem = prefix.rstrip(b"\xff")
        return low, bisect_left(self.tokens, stem[:-1] + bytes([stem[-1] + 1])) if stem else len(self.tokens)


class Alignment:
    """Maps one member's distribution onto the union.

    Args:
        union: The union vocabulary.
        tokenizer: The member's tokenizer.
        device: Where the member's logits are.
    """

    def __init__(self, union: UnionVocabulary, tokenizer: MemberTokenizer, device: torch.device | str = "cpu") -> None:
        to_union = [-1] * tokenizer.rows
        for index, data in enumerate(tokenizer.token_bytes):
            if data is not None:
                to_union[index] = union.ids[data]
        for index in tokenizer.end_ids:
            if index < tokenizer.rows:
                to_union[index] = union.end_id
        columns = torch.tensor(to_union, dtype=torch.long)
        # Rows with no place in the union (control tokens, padding rows) are masked before the softmax.
        self._masked = (columns < 0).to(device)
        first: dict[int, int] = {}
        extra: list[tuple[int, int]] = []
        for row, column in enumerate(to_union):
            if column >= 0 and first.setdefault(column, row) != row:
                extra.append((row, column))
        # Column -> row; tokens the member does not hold read a column of zeros put after the last row.
        gather = torch.full((len(union),), tokenizer.rows, dtype=torch.long)
        gather[torch.tensor(list(first), dtype=torch.long)] = torch.tensor(list(first.values()), dtype=torch.long)
        self._gather = gather.to(device)
        self._extra_rows = torch.tensor([row for row, _ in extra], dtype=torch.long, device=device)
        self._extra_columns = torch.tensor([column for _, column in extra], dtype=torch.long, device=device)

    def align(self, logits: Tensor) -> Tensor:
        """Returns the member's distribution over the union.

        Args:
            logits: Shape ``[n, rows]``, any float dtype.

        Returns:
            Probabilities, float32, shape ``[n, len(union)]``. Ids with the same bytes, and all ends of text, are
            summed; control tokens have no mass. A row is NaN where the logits are not usable.
        """
        probs = torch.softmax(logits.float().masked_fill(self._masked, float("-inf")), dim=-1)
        padded = torch.nn.functional.pad(probs, (0, 1))
        out = padded.index_select(1, self._gather)
        if self._extra_rows.numel():
            out.index_add_(1, self._extra_columns, probs.index_select(1, self._extra_rows))
        return out
