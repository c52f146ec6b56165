"""`VisionRunner`: a batched runner that also reads images."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gac_core.model.cache import SlotMapping, moved, to_device
from gac_core.model.runner import Row, SlotRunner
from gac_core.tokenization.vision import ImageInputs


class VisionRunner(SlotRunner):
    """A `SlotRunner` of a vision-language model.

    Rows of text run in batches. A row with images is one forward of the whole model, with the masks and positions
    that the model itself makes, whose keys and values go into the slot.
    """

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns the logits of each row, shape ``[num_logits, vocab_size]``; a row with images comes alone."""
        images = rows[0].images
        return super().forward(rows) if images is None else [self._read(rows[0], images)]

    def position_offset(self, images: ImageInputs, token_ids: Sequence[int]) -> int:
        """Returns by how much rotary positions of text after the images differ from its index.

        It is 0 unless the model has rotary embeddings with several dimensions (time, height, width), where an image
        takes up as many positions as its longer side has patches.

        Args:
            images: The images of a prompt.
            token_ids: Its ids, at least up to the last image token.
        """
        index = getattr(getattr(self._model, "model", None), "get_rope_index", None)
        if index is None:
            return 0
        given = {**images.tensors, **_cut(images.token_types, images.end)}
        taken = inspect.signature(index).parameters
        ids = torch.tensor([token_ids[: images.end]])
        _, deltas = index(input_ids=ids, **{name: value for name, value in given.items() if name in taken})
        return int(deltas)

    def _position_ids(self, rows: Sequence[Row], positions: Tensor) -> Tensor:
        offsets = [row.offset for row in rows]
        if any(offsets):
            positions = positions + to_device(offsets, positions.device)[:, None]
        return super()._position_ids(rows, positions)

    def _read(self, row: Row, images: ImageInputs) -> Tensor:
        """Reads a text up to its last image into the slot; returns no logits, shape ``[0, vocab_size]``."""
        length = len(row.token_ids)
        self._cache.reserve(row.slot + 1, length)
        self._cache.set_mapping(SlotMapping((row.slot,), (0,), length, length))
        device = self._model.get_input_embeddings().weight.device
        given = {**images.tensors, **_cut(images.token_types, length)}

        def select(head: Any, args: tuple[Any, ...]) -> tuple[Any, ...]:
            return (args[0][:, :0], *args[1:])

        with self._model.get_output_embeddings().register_forward_pre_hook(select):
            out = self._model(
                input_ids=to_device(row.token_ids, device)[None],
                attention_mask=torch.ones(1, length, dtype=torch.long, device=device),
                past_key_values=self._cache,
                use_cache=True,
                **model_inputs(self._model, given),
            )
        logits: Tensor = out.logits[0]
        return logits


def model_inputs(model: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns tensors of a processor on a model's device, floating-point ones in its dtype."""
    device = model.get_input_embeddings().weight.device
    on_device = {name: moved(value, device) for name, value in tensors.items()}
    return {name: value.to(model.dtype) if value.is_floating_point() else value for name, value in on_device.items()}


def _cut(token_types: Any, length: int) -> dict[str, Tensor]:
    """Tensors of one value per token for the first ``length`` ones."""
    return {name: value[:, :length] for name, value in token_types.items()}
