"""Runners: how one model computes logits for rows of several requests.

`SlotRunner` batches rows of different lengths over a `SlotCache`. `RowRunner` runs row by row on the model's own cache,
for models whose state cannot be truncated or that take no position ids (recurrent layers, ALiBi).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gac_core.model.cache import SlotCache, SlotMapping, to_device
from gac_core.model.slots import SlotStore
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
