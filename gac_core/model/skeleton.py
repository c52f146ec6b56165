"""`Skeleton`: a model without weights, from which their sizes and those of its KV cache are read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DynamicCache

from gac_core.member_config import MemberConfig
from gac_core.model.runner import layer_windows
from gac_core.placement.values import Block

# Bytes per element of a packed matrix: 8-bit, beside one float32 per row; 4-bit with a quantized scale per 64 elements
# and a float32 per 256 of these.
_PACKED = {"8bit": 1.0, "4bit": 0.5 + 1 / 64 + 4 / (64 * 256)}

MIN_CAPACITY = 64
"""Positions per slot of a KV cache that holds a short text; it grows by doubling."""


class Skeleton:
    """A causal LM on torch's meta device.

    Args:
        model: The model; its tensors have shapes and dtypes, but no storage.
        config: The member's settings.
    """

    def __init__(self, model: Any, config: MemberConfig) -> None:
        self._model = model
        self._config = model.config.get_text_config(decoder=True)
        self._quantization = config.quantization

    @property
    def max_positions(self) -> int | None:
        """The longest sequence that the model can read, in tokens; None without a limit."""
        limit = getattr(self._config, "max_position_embeddings", None)
        return limit if isinstance(limit, int) else None

    @property
    def weights(self) -> int:
        """Bytes of all parameters and buffers once they are loaded; tied ones count once."""
        return sum(block.weights for block in self.blocks)

    @cached_property
    def blocks(self) -> tuple[Block, ...]:
        """The modules that stay together, in the order of the forward, without the sizes of their KV cache.

        Modules with tied weights are one block, at the place of the first of them.
        """
        owners: dict[int, int] = {}
        sizes: list[int] = []
        modules: list[tuple[str, ...]] = []
        for name, module in self._parts(self._model, ""):
            found = list(_tensors(module))
            tied = next((owners[id(tensor)] for _, tensor in found if id(tensor) in owners), None)
            if tied is None:
                tied = len(sizes)
                sizes.append(0)
                modules.append(())
            modules[tied] += (name,)
            for key, tensor in found:
                if id(tensor) not in owners:
                    owners[id(tensor)] = tied
                    sizes[tied] += self._nbytes(".".join(part for part in (name, key) if part), tensor)
        return tuple(Block(names, size) for names, size in zip(modules, sizes, strict=True))

    @property
    def layers(self) -> list[int]:
        """Indices of the blocks that are decoder layers; empty if the model cannot be divided."""
        kinds = set(self._model._no_split_modules or ())
        named = {name for name, module in self._model.named_modules() if type(module).__name__ in kinds}
        return [index for index, block in enumerate(self.blocks) if named & set(block.modules)]

    def cache_bytes(self, tokens: int) -> list[int]:
        """Returns the bytes that each layer's KV cache takes for one request of ``tokens`` tokens.

        Batched rows take a slot, whose capacity grows by doubling from `MIN_CAPACITY` and does not depend on sliding
        windows. Other models keep the state of transformers' own cache.
        """
        try:
            layer_windows(self._config)
        except TypeError:
            return self._states(tokens)
        capacity = MIN_CAPACITY
        while capacity < tokens:
            capacity *= 2
        return [capacity * size for size in self._position_bytes]

    def activations(self, prefill_tokens: int, rows: int, cache: int, union: int) -> int:
        """Returns the bytes of intermediate results of one forward and of the distributions made of its logits.

        Args:
            prefill_tokens: Tokens of long prompts in one forward.
            rows: Positions whose logits one forward returns.
            cache: Bytes of the KV cache that one forward reads, in all layers.
            union: Entries of the union vocabulary.
        """
        config = self._config
        hidden = int(config.hidden_size)
        heads = int(getattr(config, "num_attention_heads", None) or 1)
        groups = heads // max(1, int(getattr(config, "num_key_value_heads", None) or heads))
        inner = getattr(config, "intermediate_size", None)
        width = 8 * hidden + 3 * (inner if isinstance(inner, int) else 4 * hidden)
        size = int(self._model.dtype.itemsize)
        # Keys and values of one layer are repeated for the heads that share them.
        repeated = cache // max(1, int(config.num_hidden_layers)) * groups if groups > 1 else 0
        # Logits in the model's dtype, in float32, and their softmax; then aligned, masked and combined.
        logits = rows * (int(config.vocab_size) * (size + 8) + union * 12)
        return (prefill_tokens + rows) * width * size + repeated + logits

    # ---- internal

    def _parts(self, module: nn.Module, name: str) -> Iterator[tuple[str, nn.Module | Tensor]]:
        """The largest modules that stay on one device, and parameters beside them."""
        children = list(module.named_children())
        if name and (not children or type(module).__name__ in set(self._model._no_split_modules or ())):
            yield name, module
            return
        for key, tensor in (*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)):
            yield _joined(name, key), tensor
        for key, child in children:
            yield from self._parts(child, _joined(name, key))

    def _nbytes(self, name: str, tensor: Tensor) -> int:
        if name in self._packed:
            scales = 4 * int(tensor.shape[0]) if self._quantization == "8bit" else 0
            return int(tensor.numel() * _PACKED[str(self._quantization)]) + scales
        return tensor.nbytes

    @cached_property
    def _packed(self) -> set[str]:
        """The names of the weights that bitsandbytes packs."""
        if self._quantization is None:
            return set()
        from transformers.pytorch_utils import Conv1D
        from transformers.quantizers.base import get_keys_to_not_convert
        from transformers.quantizers.quantizers_utils import should_convert_module

        kept = get_keys_to_not_convert(self._model)
        return {
            f"{name}.weight"
            for name, module in self._model.named_modules()
            if isinstance(module, (nn.Linear, Conv1D)) and should_convert_module(name, kept)
        }

    @cached_property
    def _position_bytes(self) -> list[int]:
        """Bytes of one position's keys and values in each layer."""
        return [layer.keys.nbytes + layer.values.nbytes for layer in self._read(1)]

    def _states(self, tokens: int) -> list[int]:
        """Bytes of each layer's state after ``tokens`` tokens, whatever its tensors are called."""
        states = [
            [value for value in vars(layer).values() if isinstance(value, Tensor)] for layer in self._read(tokens)
        ]
        return [sum(tensor.nbytes for tensor in state) for state in states]

    def _read(self, tokens: int) -> list[Any]:
        """The layers of transformers' cache after a forward of ``tokens`` tokens, which computes shapes alone."""
        cache: Any = DynamicCache(config=self._model.config)
        with torch.inference_mode(), torch.device("meta"):
            self._model(input_ids=torch.zeros(1, tokens, dtype=torch.long), past_key_values=cache, use_cache=True)
        return list(cache.layers)


def _tensors(module: nn.Module | Tensor) -> Iterator[tuple[str, Tensor]]:
    if isinstance(module, Tensor):
        yield "", module
    else:
        yield from module.named_parameters()
        yield from module.named_buffers()


def _joined(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
