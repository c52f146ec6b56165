"""The union of the members' vocabularies, keyed by bytes, and the alignment of each member with it.

GaC, section 3.2; the mapping matrices of the paper are index vectors here.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from gac_core.tokenization import table_cache
from gac_core.tokenization.table_cache import Array
from gac_core.tokenization.tokenizer import MemberTokenizer

_TABLE_VERSION = "union 1"


class UnionVocabulary:
    """Every byte string that is a token of some member, and one end of text for all members.

    Ids are the ranks of the sorted byte strings, so that they are the same in every process; the last id is the end of
    text.

    Args:
        tokenizers: The members' tokenizers.

    Attributes:
        tokens: The byte strings, sorted.
        end_id: The id of the end of text, ``len(tokens)``.
    """

    def __init__(self, tokenizers: Sequence[MemberTokenizer]) -> None:
        key = table_cache.fingerprint(
            [_TABLE_VERSION, *(f"{each.fingerprint} {sorted(each.end_ids)}" for each in tokenizers)]
        )
        stored = table_cache.load(key)
        if stored is None:
            stored = self._build(tokenizers)
            table_cache.store(key, stored)
        self.tokens = [data for data in table_cache.unpack(stored) if data is not None]
        self.end_id = len(self.tokens)
        self._keys: dict[torch.device, Tensor] = {}
        self._columns = {id(each): stored[f"columns{index}"] for index, each in enumerate(tokenizers)}

    @staticmethod
    def _build(tokenizers: Sequence[MemberTokenizer]) -> dict[str, Array]:
        tokens = sorted({data for tokenizer in tokenizers for data in tokenizer.token_bytes if data is not None})
        ids: dict[bytes | None, int] = {data: index for index, data in enumerate(tokens)}
        arrays = dict(table_cache.pack(tokens))
        for index, tokenizer in enumerate(tokenizers):
            columns = np.array([ids.get(data, -1) for data in tokenizer.token_bytes], np.int32)
            columns[[i for i in tokenizer.end_ids if i < tokenizer.rows]] = len(tokens)
            arrays[f"columns{index}"] = columns
        return arrays

    @cached_property
    def ids(self) -> dict[bytes, int]:
        """The union id of each byte string."""
        return {data: index for index, data in enumerate(self.tokens)}

    def keys(self, device: torch.device) -> Tensor:
        """Returns a hash of each entry's bytes, int64, shape ``[len(self)]``.

        Sampling draws depend on these keys, so that a member's sampled text does not depend on the union.
        """
        if device not in self._keys:
            texts = [*self.tokens, b"\xff<end>"]
            digests = b"".join(hashlib.blake2b(text, digest_size=8).digest() for text in texts)
            self._keys[device] = torch.from_numpy(np.frombuffer(digests, np.int64).copy()).to(device)
        return self._keys[device]

    def table(self, tokenizer: MemberTokenizer) -> AlignmentTable:
        """Returns which union id each row of a member's output head has."""
        columns = self._columns[id(tokenizer)]
        digest = hashlib.blake2b(columns.tobytes(), digest_size=16, salt=len(self).to_bytes(8, "little"))
        return AlignmentTable(digest.hexdigest(), columns, len(self))

    def __len__(self) -> int:
        return len(self.tokens) + 1

    def data(self, union_id: int) -> bytes | None:
        """Returns a token's bytes, or None for the end of text."""
        return None if union_id == self.end_id else self.tokens[union_id]


@dataclass(frozen=True, eq=False)
class AlignmentTable:
    """What an alignment is made of, as a value that can be sent to another process.

    Attributes:
        key: Identifies the contents.
        columns: The union id of each row of the member's output head, int32, shape ``[rows]``; -1 where it has none.
        size: Length of the union vocabulary.
    """

    key: str
    columns: Array
    size: int


class Alignment:
    """Maps one member's distribution onto the union.

    Args:
        union: The union vocabulary.
        tokenizer: The member's tokenizer.
        device: Device of the member's logits. Default ``"cpu"``.

    Attributes:
        table: What it is made of.
    """

    def __init__(self, union: UnionVocabulary, tokenizer: MemberTokenizer, device: torch.device | str = "cpu") -> None:
        self._build(union.table(tokenizer), device)

    @classmethod
    def of_table(cls, table: AlignmentTable, device: torch.device | str = "cpu") -> Alignment:
        """Returns the alignment that a table describes, with its tensors on a device."""
        alignment = cls.__new__(cls)
        alignment._build(table, device)
        return alignment

    def _build(self, table: AlignmentTable, device: torch.device | str) -> None:
        self.table = table
        columns = torch.from_numpy(table.columns).long()
        # Rows without a union id (control tokens, padding) are masked before the softmax. So is one column after the
        # last row, from which tokens are gathered that the member does not have.
        self._masked = torch.nonzero(torch.cat([columns, columns.new_tensor([-1])]) < 0)[:, 0].to(device)
        rows = torch.nonzero(columns >= 0)[:, 0]
        placed = columns[rows]
        # Union id -> its first row.
        gather = torch.full((table.size,), len(columns), dtype=torch.long)
        gather.scatter_reduce_(0, placed, rows, "amin")
        extra = gather[placed] != rows
        self._gather = gather.to(device)
        self._present = (gather < len(columns)).numpy()
        self._extra_rows = rows[extra].to(device)
        self._extra_columns = placed[extra].to(device)

    def has(self, union_id: int) -> bool:
        """Returns whether the member has a token of the union."""
        return bool(self._present[union_id])

    def align(self, logits: Tensor) -> Tensor:
        """Returns the member's distribution over the union.

        Args:
            logits: Shape ``[n, rows]``, any float dtype.

        Returns:
            Probabilities, float32, shape ``[n, len(union)]``. Ids with the same bytes are summed, and so are all ends
            of text; control tokens have no mass. Rows with invalid logits are NaN.
        """
        padded = torch.empty((logits.shape[0], logits.shape[1] + 1), dtype=torch.float32, device=logits.device)
        padded[:, :-1] = logits
        padded.index_fill_(1, self._masked, float("-inf"))
        probs = torch.softmax(padded, dim=-1)
        out = probs.index_select(1, self._gather)
        if self._extra_rows.numel():
            out.index_add_(1, self._extra_columns, probs.index_select(1, self._extra_rows))
        return out
