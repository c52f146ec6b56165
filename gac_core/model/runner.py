"""Runners: how one model computes logits for rows of several requests.

`SlotRunner` batches rows of different lengths over a `SlotCache`; `RowRunner` (`gac_core.model.row_runner`) runs row by
row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer, DynamicSlidingWindowLayer

from gac_core.model.cache import SlotCache, SlotMapping
from gac_core.model.entries import SavedStates
from gac_core.model.slots import SlotStore
from gac_core.model.transfer import to_device
from gac_core.tokenization.vision import ImageInputs

Mask = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """New tokens of one slot.

    Attributes:
        slot: The index of the slot.
        start: Position of the first new token; what the slot holds from there on is overwritten.
        token_ids: The new tokens, at least one.
        num_logits: How many positions' logits to return, counted from the last; 0 to ``len(token_ids)``.
        images: The images that the tokens contain; such a row starts at 0, returns no logits and is run alone. None:
            the tokens are text.
        offset: What is added to the positions of the tokens for rotary embeddings: images before them may take up
            fewer positions than tokens.
    """

    slot: int
    start: int
    token_ids: tuple[int, ...]
    num_logits: int = 1
    images: ImageInputs | None = None
    offset: int = 0


class Runner(SlotStore, Protocol):
    """Computes the logits of rows, in one forward of the model per call."""

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        ...

    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns the logits of each row, shape ``[num_logits, vocab_size]``."""
        ...

    def close(self) -> None:
        """Frees all slots and drops the model."""
        ...


class SlotRunner:
    """Batched forwards over a slot cache.

    Args:
        model: A causal LM of transformers, in eval mode. Several runners may share it; calls must not overlap.
    """

    supports_truncation = True

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config(decoder=True)
        self._model = model
        self._layers = layer_windows(config)
        self._additive_mask = config._attn_implementation == "eager"
        self._max_positions = getattr(config, "max_position_embeddings", None)
        self._cache = SlotCache(len(self._layers))

    @property
    def nbytes(self) -> int:
        """Memory of all slots."""
        return self._cache.nbytes

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Erases a slot."""
        self._cache.clear(slot)

    def bytes_for(self, num_slots: int, length: int) -> int:
        """Returns the bytes of ``num_slots`` slots of at least ``length`` tokens each."""
        return num_slots * self._cache.capacity_for(length) * self._cache.position_bytes

    @torch.inference_mode()
    def reserve(self, num_slots: int, length: int) -> None:
        """Grows the storage to at least ``num_slots`` slots of ``length`` tokens each."""
        self._cache.reserve(num_slots, length)

    @torch.inference_mode()
    def shrink(self, num_slots: int, length: int) -> None:
        """Frees all but the first ``num_slots`` slots, and capacity far above ``length`` tokens."""
        self._cache.shrink(num_slots, length)

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the first ``length`` tokens of one slot to another."""
        self._cache.copy(source, target, length)

    @torch.inference_mode()
    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges the first ``length`` tokens of two slots."""
        self._cache.swap(one, other, length)

    @torch.inference_mode()
    def save(self, slot: int, length: int) -> SavedStates:
        """Returns copies of the states of a slot's first ``length`` tokens."""
        return self._cache.save(slot, length)

    def saved_bytes(self, length: int) -> int:
        """Returns the bytes that saved states of ``length`` tokens take."""
        return length * self._cache.position_bytes

    @torch.inference_mode()
    def restore(self, states: SavedStates, slot: int, length: int) -> None:
        """Writes the first ``length`` tokens of saved states to a slot, for which it makes room."""
        self.reserve(slot + 1, length)
        self._cache.restore(states, slot, length)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns the logits of each row, shape ``[num_logits, vocab_size]``."""
        order = sorted(range(len(rows)), key=lambda i: rows[i].slot)
        ordered = [rows[i] for i in order]
        width = max(len(row.token_ids) for row in ordered)
        mapping = SlotMapping(
            slots=tuple(row.slot for row in ordered),
            starts=tuple(row.start for row in ordered),
            width=width,
            length=max(row.start for row in ordered) + width,
        )
        self._cache.reserve(mapping.slots[-1] + 1, mapping.length)
        self._cache.set_mapping(mapping)
        logits = self._logits(ordered, mapping)
        parts = dict(zip(order, torch.split(logits, [row.num_logits for row in ordered]), strict=True))
        return [parts[i] for i in range(len(rows))]

    def close(self) -> None:
        """Frees all slots and drops the model."""
        self.shrink(0, 0)
        self._model = None

    def _logits(self, rows: Sequence[Row], mapping: SlotMapping) -> Tensor:
        """The logits of all rows one after another, shape ``[sum of num_logits, vocab_size]``."""
        width = mapping.width
        # Indices into the flattened ``[rows, width]`` of the positions whose logits are returned.
        selected = [
            index * width + position
            for index, row in enumerate(rows)
            for position in range(len(row.token_ids) - row.num_logits, len(row.token_ids))
        ]
        padded = [token for row in rows for token in (*row.token_ids, *[0] * (width - len(row.token_ids)))]
        device = self._model.get_input_embeddings().weight.device
        packed = to_device([*padded, *mapping.starts, *selected], device)
        ids, starts, indices = torch.split(packed, [len(padded), len(rows), len(selected)])
        positions = starts[:, None] + torch.arange(width, device=device)
        mask = self._mask(positions, mapping.length)

        def select(head: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            """Reduces the input of the output head from ``[rows, width, hidden]`` to ``[1, selected, hidden]``."""
            hidden = args[0]
            flat = hidden.reshape(-1, hidden.shape[-1])
            return (flat.index_select(0, indices.to(hidden.device))[None], *args[1:])

        # For this forward alone: other runners may share the model.
        with self._model.get_output_embeddings().register_forward_pre_hook(select):
            out = self._model(
                input_ids=ids.view(-1, width),
                attention_mask=mask,
                position_ids=self._position_ids(rows, positions),
                past_key_values=self._cache,
                use_cache=True,
            )
        logits: Tensor = out.logits[0]
        return logits

    def _position_ids(self, rows: Sequence[Row], positions: Tensor) -> Tensor:
        """The positions for embeddings, given the indices of the tokens, shape ``[rows, width]``."""
        # Only padding can lie beyond; tables of learned positions have no row for it.
        return positions if self._max_positions is None else positions.clamp(max=self._max_positions - 1)

    def _mask(self, positions: Tensor, length: int) -> Mask:
        """The attention mask, ``[rows, 1, width, length]``; one per kind of layer if these differ."""
        keys = torch.arange(length, device=positions.device)
        causal = keys <= positions[:, None, :, None]
        masks: dict[str, Tensor] = {}
        for kind, window in set(self._layers):
            mask = causal if window is None else causal & (keys > positions[:, None, :, None] - window)
            masks[kind] = self._as_bias(mask) if self._additive_mask else mask
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _as_bias(self, mask: Tensor) -> Tensor:
        dtype = self._model.get_input_embeddings().weight.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


def layer_windows(config: Any) -> list[tuple[str, int | None]]:
    """Returns the kind and sliding window of each decoder layer, taken from transformers' own cache for this model.

    Raises:
        TypeError: A layer has another state than keys and values.
    """
    kinds = getattr(config, "layer_types", None)
    layers: list[tuple[str, int | None]] = []
    for index, layer in enumerate(DynamicCache(config=config).layers):
        if type(layer) is DynamicSlidingWindowLayer:
            layers.append((kinds[index] if kinds else "sliding_attention", int(layer.sliding_window)))
        elif type(layer) is DynamicLayer:
            layers.append((kinds[index] if kinds else "full_attention", None))
        else:
            raise TypeError(f"layer {index} keeps its state in a {type(layer).__name__}")
    return layers


def same_logits(model: Any, one: Tensor, other: Tensor) -> bool:
    """Whether logits agree within the rounding of the model's dtype and quantization."""
    # Quantized weights are rounded, 8-bit ones depending on what else is in the batch.
    exact = one.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    limit = 1e-3 if exact else 0.1
    other = other.float()
    return torch.allclose(one.float(), other, rtol=limit, atol=limit * float(other.abs().max()))
