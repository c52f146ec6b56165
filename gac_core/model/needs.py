"""What members need of memory, from their files and configurations, before weights are read."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gac_core.model.checkpoint import Checkpoint
from gac_core.model.memory import smaller
from gac_core.placement.values import Block, MemberNeed

logger = logging.getLogger(__name__)

POSITIONS = 8
"""Positions of a request whose logits one forward returns at most: those of a draft and one more."""


@dataclass(frozen=True)
class Workload:
    """What a member is expected to run.

    Attributes:
        cache_bytes: Bytes of its KV cache, as in `MemberOptions`.
        prefill_tokens: Tokens of long prompts per forward.
        max_batch_size: Requests that run at once.
        tokens: Length of the requests whose KV cache must fit, in tokens, however large ``cache_bytes`` is. None:
            ``cache_bytes`` decides.
        requests: How many requests of that length must fit at once.
        document_cache_bytes: Bytes of the documents that are kept beside it, as in `MemberOptions`.
        union: Entries of the union vocabulary. 0: those of the member's own.
    """

    cache_bytes: int
    prefill_tokens: int = 512
    max_batch_size: int = 16
    tokens: int | None = None
    requests: int = 1
    document_cache_bytes: int = 0
    union: int = 0


def member_need(checkpoint: Checkpoint, name: str, workload: Workload | None) -> MemberNeed:
    """Returns what a member needs.

    The sizes come from the model built without storage, so that tied tensors, modules that quantization leaves out and
    layers of different kinds are counted as they are loaded. Files that are quantized already decide by their size. A
    model that cannot be built without storage counts by the headers of its files, and cannot be divided.

    Args:
        checkpoint: Its files.
        name: The member's name.
        workload: What it is expected to run; None counts the weights alone.
    """
    how = smaller(checkpoint.config, checkpoint.dtype)
    try:
        skeleton = checkpoint.skeleton()
        blocks = skeleton.blocks
        if checkpoint.is_packed:
            blocks = _scaled(blocks, checkpoint.stored_bytes())
        weights = sum(block.weights for block in blocks)
        if workload is None:
            return MemberNeed(name, weights, remedies=how)
        layers = skeleton.layers
        cache = skeleton.cache_bytes(workload.tokens or 1)
        kv_cache = max(workload.cache_bytes, workload.requests * sum(cache) if workload.tokens else 0)
        documents = workload.document_cache_bytes
        rows = POSITIONS * workload.max_batch_size
        union = max(workload.union, checkpoint.vocab_size)
        longest = sum(skeleton.cache_bytes(skeleton.max_positions or workload.tokens or 1))
        read = min(kv_cache, workload.max_batch_size * longest)
        activations = skeleton.activations(workload.prefill_tokens, rows, read, union)
    except Exception as error:
        # Loading may succeed all the same, and reports what is wrong otherwise.
        logger.info("member %r: its sizes are estimated by its files alone: %s", name, error)
        cache_bytes = 0 if workload is None else workload.cache_bytes + workload.document_cache_bytes
        return MemberNeed(name, checkpoint.stored_bytes() or 0, cache_bytes, remedies=how)
    divisible = _with_cache(blocks, layers, cache, kv_cache + documents) if layers else ()
    return MemberNeed(name, weights, kv_cache + documents, activations, divisible, remedies=how)


def _scaled(blocks: tuple[Block, ...], total: int | None) -> tuple[Block, ...]:
    """Blocks whose weights have another sum; unchanged if it is unknown."""
    if total is None:
        return blocks
    before = sum(block.weights for block in blocks) or 1
    return tuple(replace(block, weights=block.weights * total // before) for block in blocks)


def _with_cache(blocks: tuple[Block, ...], layers: list[int], cache: list[int], total: int) -> tuple[Block, ...]:
    """Blocks with their parts of a KV cache, in proportion to what their layers take."""
    parts = dict(zip(layers, cache, strict=False)) if sum(cache) else dict.fromkeys(layers, 1)
    whole = sum(parts.values()) or 1
    return tuple(replace(block, kv_cache=total * parts.get(index, 0) // whole) for index, block in enumerate(blocks))


def fixed_devices(need: MemberNeed, device: str | None, device_map: object, devices: Sequence[str]) -> MemberNeed:
    """Returns the need of a member whose own settings place it.

    Args:
        need: The need.
        device: Its device; None with a device map.
        device_map: Its device map. A name such as ``"auto"`` counts as evenly divided over all devices.
        devices: The names of the plan's devices.
    """
    if device is not None:
        return replace(need, fixed=((device, 1.0),))
    if not isinstance(device_map, Mapping):
        return replace(need, fixed=tuple((name, 1 / len(devices)) for name in devices))
    sizes: dict[str, int] = {}
    for block in need.blocks or (Block(("",), need.weights or 1),):
        place = _place(device_map, block.modules[0])
        sizes[place] = sizes.get(place, 0) + block.weights
    whole = sum(sizes.values()) or 1
    return replace(need, fixed=tuple((name, size / whole) for name, size in sizes.items()))


def _place(device_map: Mapping[str, Any], module: str) -> str:
    """The device of a module in a device map."""
    names = [name for name in device_map if not name or module == name or module.startswith(f"{name}.")]
    place = device_map[max(names, key=len)] if names else next(iter(device_map.values()))
    return f"cuda:{place}" if isinstance(place, int) else str(place)
