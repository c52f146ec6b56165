"""`ImageMessage`: the images of a prompt on their way to a member's actor."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from gac_core.tokenization.vision import ImageInputs

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class ImageMessage:
    """`ImageInputs`, with tensors as arrays.

    Attributes:
        keys: Int64, shape ``[tokens]``.
    """

    tensors: dict[str, Array]
    token_types: dict[str, Array]
    keys: Array
    count: int

    @classmethod
    def of(cls, images: ImageInputs) -> ImageMessage:
        """Returns the message of images."""
        tensors, types = (
            {name: value.numpy() for name, value in each.items()} for each in (images.tensors, images.token_types)
        )
        return cls(tensors, types, np.array(images.keys, np.int64), images.count)

    def images(self) -> ImageInputs:
        """Returns the images, beside the model."""
        tensors, types = (
            {name: torch.from_numpy(value) for name, value in each.items()} for each in (self.tensors, self.token_types)
        )
        return ImageInputs(tensors, types, tuple(self.keys.tolist()), self.count)
