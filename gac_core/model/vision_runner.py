"""`VisionRunner` and `VisionRowRunner`: runners that also read images, batched and row by row.

A row with images is one forward of the whole model, with the masks and positions that the model itself makes; its state
goes into the cache of the slot. What follows are rows of text.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gac_core.model.cache import SlotMapping
from gac_core.model.row_runner import RowRunner
from gac_core.model.runner import Row, SlotRunner
from gac_core.model.transfer import moved, to_device
from gac_core.tokenization.vision import ImageInputs


class VisionRunner(SlotRunner):
    """A `SlotRunner` of a vision-language model."""

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns the logits of each row, shape ``[num_logits, vocab_size]``; a row with images comes alone."""
        images = rows[0].images
        return super().forward(rows) if images is None else [self._read(rows[0], images)]

    def position_offset(self, images: ImageInputs, token_ids: Sequence[int]) -> int:
        """Returns `position_offset` of its model."""
        return position_offset(self._model, images, token_ids)

    def _position_ids(self, rows: Sequence[Row], positions: Tensor) -> Tensor:
        offsets = [row.offset for row in rows]
        if any(offsets):
            positions = positions + to_device(offsets, positions.device)[:, None]
        return super()._position_ids(rows, positions)

    def _read(self, row: Row, images: ImageInputs) -> Tensor:
        length = len(row.token_ids)
        self._cache.reserve(row.slot + 1, length)
        self._cache.set_mapping(SlotMapping((row.slot,), (0,), length, length))
        return read_images(self._model, row.token_ids, images, self._cache)


class VisionRowRunner(RowRunner):
    """A `RowRunner` of a vision-language model."""

    def position_offset(self, images: ImageInputs, token_ids: Sequence[int]) -> int:
        """Returns `position_offset` of its model."""
        return position_offset(self._model, images, token_ids)

    def _logits(self, ids: Sequence[int], start: int, cache: Any, images: ImageInputs | None, offset: int) -> Tensor:
        if images is None or start:
            return self._text_logits(ids, start, cache, offset)
        logits = read_images(self._model, ids[: images.end], images, cache)
        if len(ids) == images.end:
            return logits
        return self._text_logits(ids[images.end :], images.end, cache, offset)

    def _text_logits(self, ids: Sequence[int], start: int, cache: Any, offset: int) -> Tensor:
        device = self._model.get_input_embeddings().weight.device
        positions = {}
        if _rope_index(self._model) is not None:
            # Without them the model would add the offset of the last image that it has read for any request.
            own = torch.arange(start + offset, start + offset + len(ids), device=device)
            positions["position_ids"] = own.view(1, 1, -1).expand(3, 1, -1)
        given = to_device(ids, device)[None]
        logits: Tensor = self._model(input_ids=given, past_key_values=cache, use_cache=True, **positions).logits[0]
        return logits


def row_runner(model: Any) -> RowRunner:
    """Returns what runs text row by row.

    A model that keeps an offset of positions gets them explicitly: other members may share it and read images.
    """
    return RowRunner(model) if _rope_index(model) is None else VisionRowRunner(model)


def position_offset(model: Any, images: ImageInputs, token_ids: Sequence[int]) -> int:
    """Returns by how much rotary positions of text after the images differ from its index.

    It is 0 unless the model has rotary embeddings with several dimensions (time, height, width), where an image takes
    up as many positions as its longer side has patches.

    Args:
        model: A vision-language model of transformers.
        images: The images of a prompt.
        token_ids: Its ids, at least up to the last image token.
    """
    index = _rope_index(model)
    if index is None:
        return 0
    given = {**images.tensors, **_cut(images.token_types, images.end)}
    taken = inspect.signature(index).parameters
    ids = torch.tensor([token_ids[: images.end]])
    _, deltas = index(input_ids=ids, **{name: value for name, value in given.items() if name in taken})
    return int(deltas)


def read_images(model: Any, token_ids: Sequence[int], images: ImageInputs, cache: Any) -> Tensor:
    """Reads a text up to its last image into a cache.

    Args:
        model: A vision-language model of transformers.
        token_ids: The ids from the first one to the last image token.
        images: The images.
        cache: An empty cache of transformers.

    Returns:
        No logits, shape ``[0, vocab_size]``.
    """
    device = model.get_input_embeddings().weight.device

    def select(head: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
        return (args[0][:, :0], *args[1:])

    with model.get_output_embeddings().register_forward_pre_hook(select):
        out = model(
            input_ids=to_device(token_ids, device)[None],
            attention_mask=torch.ones(1, len(token_ids), dtype=torch.long, device=device),
            past_key_values=cache,
            use_cache=True,
            **model_inputs(model, {**images.tensors, **_cut(images.token_types, len(token_ids))}),
        )
    logits: Tensor = out.logits[0]
    return logits


def model_inputs(model: Any, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors of a processor on a model's device, floating-point ones in its dtype."""
    device = model.get_input_embeddings().weight.device
    on_device = {name: moved(value, device) for name, value in tensors.items()}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in on_device.items()}


def _rope_index(model: Any) -> Any:
    """The method that computes positions with several dimensions; None if the model has none."""
    return getattr(getattr(model, "model", None), "get_rope_index", None)


def _cut(token_types: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Tensors of one value per token for the first ``length`` ones."""
    return {name: value[:, :length] for name, value in token_types.items()}
