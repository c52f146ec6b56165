"""`RowRunner`: runs row by row on the model's own cache.

It is for models whose state cannot be truncated or that take no position ids (recurrent layers, ALiBi).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache

from gac_core.model.entries import SavedStates
from gac_core.model.runner import Row
from gac_core.model.transfer import to_device
from gac_core.tokenization.vision import ImageInputs


@dataclass(frozen=True)
class _RowState:
    """The token ids of a slot, the model's own cache of them, and their images."""

    token_ids: list[int]
    cache: Any
    images: ImageInputs | None = None

    @property
    def nbytes(self) -> int:
        """Memory of the cache and of the images, which are kept to read the text again where it is cut."""
        return _cache_bytes(self.cache) + (0 if self.images is None else self.images.nbytes)


class RowRunner:
    """Runs one row after another on the model's own cache; truncation recomputes the row from its first token.

    Args:
        model: A causal LM of transformers, in eval mode.
    """

    supports_truncation = False

    def __init__(self, model: Any) -> None:
        self._model = model
        self._states: dict[int, _RowState] = {}

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        return sum(state.nbytes for state in list(self._states.values()))

    def clear(self, slot: int) -> None:
        """Erases a slot."""
        self._states.pop(slot, None)

    def bytes_for(self, num_slots: int, length: int) -> int:
        """Returns the bytes of ``num_slots`` slots, each as large as the largest at present."""
        return num_slots * max([state.nbytes for state in self._states.values()], default=0)

    def reserve(self, num_slots: int, length: int) -> None:
        """Does nothing: each row has a cache of its own, which grows with it."""

    def shrink(self, num_slots: int, length: int) -> None:
        """Frees all but the first ``num_slots`` slots."""
        self._states = {slot: state for slot, state in self._states.items() if slot < num_slots}

    def copy(self, source: int, target: int, length: int) -> None:
        """Not supported: `SlotTable` takes whole slots over instead where ``supports_truncation`` is False."""
        raise NotImplementedError

    def save(self, slot: int, length: int) -> SavedStates:
        """Not supported: without truncation there are no entries."""
        raise NotImplementedError

    def saved_bytes(self, length: int) -> int:
        """Not supported, as `save`."""
        raise NotImplementedError

    def restore(self, states: SavedStates, slot: int, length: int) -> None:
        """Not supported, as `save`."""
        raise NotImplementedError

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges two slots."""
        states = {one: self._states.pop(other, None), other: self._states.pop(one, None)}
        self._states.update({slot: state for slot, state in states.items() if state is not None})

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns the logits of each row, shape ``[num_logits, vocab_size]``."""
        return [self._run(row) for row in rows]

    def close(self) -> None:
        """Frees all slots and drops the model."""
        self._states.clear()
        self._model = None

    def _run(self, row: Row) -> Tensor:
        state = self._states.pop(row.slot, None) or _RowState([], None)
        ids, cache, new = state.token_ids, state.cache, list(row.token_ids)
        if row.start > len(ids):
            # An earlier forward of this row failed halfway, and its state was discarded.
            raise RuntimeError(f"the state of the text was lost at position {row.start}")
        # What another request had in the slot does not count.
        images = state.images if row.start else row.images
        if row.start < len(ids):
            new, ids, cache = ids[: row.start] + new, [], None
        if cache is None:
            cache = DynamicCache(config=self._model.config)
        logits = self._logits(new, len(ids), cache, images, row.offset)
        self._states[row.slot] = _RowState(ids + new, cache, images)
        return logits[logits.shape[0] - row.num_logits :]

    def _logits(self, ids: Sequence[int], start: int, cache: Any, images: ImageInputs | None, offset: int) -> Tensor:
        """The logits of ids that follow ``start`` others in a cache, shape ``[n, vocab_size]``; of the last ones."""
        given = to_device(ids, self._model.get_input_embeddings().weight.device)[None]
        logits: Tensor = self._model(input_ids=given, past_key_values=cache, use_cache=True).logits[0]
        return logits


def _cache_bytes(cache: Any) -> int:
    """Bytes of all tensors in a cache's layers, whatever their attributes are called."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)
