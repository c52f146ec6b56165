"""How one model computes logits for rows of several requests.

`SlotRunner` batches ragged rows over a `SlotCache`; `RowRunner` runs row by row on the model's own cache, for models
whose state cannot be cut or whose positions cannot be given (recurrent layers, ALiBi). `choose_runner` takes the first
where a short trial equals the model's plain forward. Knows nothing of tokenizers, requests or the union.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from gac_core.model.cache import Rows, SlotCache, send
from gac_core.model.slots import SlotStore

logger = logging.getLogger(__name__)

Mask = Tensor | dict[str, Tensor]


@dataclass(frozen=True)
class Row:
    """New tokens of one slot.

    Attributes:
        slot: The slot.
        start: Position of the first new token; everything the slot holds from there on is dropped.
        token_ids: The new tokens, at least one.
        num_logits: Logits of the last this many positions are wanted, 0 to ``len(token_ids)``.
    """

    slot: int
    start: int
    token_ids: tuple[int, ...]
    num_logits: int = 1


class Runner(SlotStore, Protocol):
    """Computes logits of rows; one call is one forward of the model."""

    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns per row the logits, shape ``[num_logits, vocabulary rows]``."""
        ...


class SlotRunner:
    """Batched forwards over a slot cache.

    Args:
        model: A causal LM of transformers, in eval mode.
    """

    can_cut = True

    def __init__(self, model: Any) -> None:
        config = model.config.get_text_config(decoder=True)
        self._model = model
        self._layers = _layer_windows(config)
        self._additive = config._attn_implementation == "eager"
        self._context = getattr(config, "max_position_embeddings", None)
        self._cache = SlotCache(len(self._layers))
        self._wanted: Tensor | None = None
        model.get_output_embeddings().register_forward_pre_hook(self._keep_wanted)

    @torch.inference_mode()
    def clear(self, slot: int) -> None:
        """Forgets all that a slot holds."""
        self._cache.clear(slot)

    def bytes_for(self, slots: int, length: int) -> int:
        """Returns the bytes of so many slots once each can hold a text of this length."""
        return slots * self._cache.capacity_for(length) * self._cache.position_bytes

    @torch.inference_mode()
    def make_room(self, slots: int, length: int) -> None:
        """Makes at least so many slots, each for texts of this length or more."""
        self._cache.make_room(slots, length)

    @torch.inference_mode()
    def keep(self, slots: int, length: int) -> None:
        """Gives back the slots from this one on, and most of what no text of this length needs."""
        self._cache.keep(slots, length)

    @torch.inference_mode()
    def copy(self, source: int, target: int, length: int) -> None:
        """Copies the beginning of a slot over that of another."""
        self._cache.copy(source, target, length)

    @torch.inference_mode()
    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges the beginnings of two slots."""
        self._cache.swap(one, other, length)

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns per row the logits, shape ``[num_logits, vocabulary rows]``."""
        order = sorted(range(len(rows)), key=lambda i: rows[i].slot)
        ordered = [rows[i] for i in order]
        width = max(len(row.token_ids) for row in ordered)
        plan = Rows(
            slots=tuple(row.slot for row in ordered),
            starts=tuple(row.start for row in ordered),
            width=width,
            length=max(row.start for row in ordered) + width,
        )
        self._cache.reserve(plan)
        device = self._model.get_input_embeddings().weight.device
        flat = [
            index * width + position
            for index, row in enumerate(ordered)
            for position in range(len(row.token_ids) - row.num_logits, len(row.token_ids))
        ]
        padded = [token for row in ordered for token in (*row.token_ids, *[0] * (width - len(row.token_ids)))]
        sent = send([*padded, *plan.starts, *flat], device)
        ids, starts, wanted = torch.split(sent, [len(padded), len(ordered), len(flat)])
        positions = starts[:, None] + torch.arange(width, device=device)
        mask = self._mask(positions, plan.length)
        if self._context is not None:
            # Only padding can lie past the context; learned position tables have no row for it.
            positions = positions.clamp(max=self._context - 1)
        self._wanted = wanted
        try:
            out = self._model(
                input_ids=ids.view(-1, width),
                attention_mask=mask,
                position_ids=positions,
                past_key_values=self._cache,
                use_cache=True,
            )
        finally:
            self._wanted = None
        parts = dict(zip(order, out.logits[0].split([row.num_logits for row in ordered]), strict=True))
        return [parts[i] for i in range(len(rows))]

    def _keep_wanted(self, module: Any, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
        """Lets the output head see only the positions asked for: ``[rows, width, hidden] -> [1, wanted, hidden]``."""
        if self._wanted is None:
            return None
        hidden = args[0]
        kept = hidden.reshape(-1, hidden.shape[-1]).index_select(0, self._wanted.to(hidden.device))
        return (kept[None], *args[1:])

    def _mask(self, positions: Tensor, length: int) -> Mask:
        """Who may see whom: ``[rows, 1, width, length]``, one per kind of layer where they differ."""
        keys = torch.arange(length, device=positions.device)
        causal = keys <= positions[:, None, :, None]
        masks: dict[str, Tensor] = {}
        for kind, window in set(self._layers):
            mask = causal if window is None else causal & (keys > positions[:, None, :, None] - window)
            masks[kind] = self._as_bias(mask) if self._additive else mask
        return masks if len(masks) > 1 else next(iter(masks.values()))

    def _as_bias(self, mask: Tensor) -> Tensor:
        dtype = self._model.get_input_embeddings().weight.dtype
        return torch.zeros(mask.shape, dtype=dtype, device=mask.device).masked_fill(~mask, torch.finfo(dtype).min)


class RowRunner:
    """One row after another on the model's own cache; a cut replays the row's tokens from the beginning.

    Args:
        model: A causal LM of transformers, in eval mode.
    """

    can_cut = False

    def __init__(self, model: Any) -> None:
        self._model = model
        self._held: dict[int, tuple[list[int], Any]] = {}

    def clear(self, slot: int) -> None:
        """Forgets all that a slot holds."""
        self._held.pop(slot, None)

    def bytes_for(self, slots: int, length: int) -> int:
        """Returns the bytes of so many slots if each were as large as the largest one."""
        return slots * max([_state_bytes(cache) for _, cache in self._held.values()], default=0)

    def make_room(self, slots: int, length: int) -> None:
        """Nothing: each row has a cache of its own, which grows with it."""

    def keep(self, slots: int, length: int) -> None:
        """Forgets the slots from this one on."""
        self._held = {slot: held for slot, held in self._held.items() if slot < slots}

    def copy(self, source: int, target: int, length: int) -> None:
        """Never asked for: only whole texts can be gone on from, and those are taken over."""
        raise NotImplementedError

    def swap(self, one: int, other: int, length: int) -> None:
        """Exchanges two slots."""
        held = {slot: self._held.pop(slot, None) for slot in (one, other)}
        self._held.update({a: h for a, b in ((one, other), (other, one)) if (h := held[b]) is not None})

    @torch.inference_mode()
    def forward(self, rows: Sequence[Row]) -> list[Tensor]:
        """Returns per row the logits, shape ``[num_logits, vocabulary rows]``."""
        return [self._run(row) for row in rows]

    def _run(self, row: Row) -> Tensor:
        ids, cache = self._held.pop(row.slot, ([], None))
        new = list(row.token_ids)
        if row.start > len(ids):
            # An earlier forward of this row failed in the middle, and what it had read went with it.
            raise RuntimeError(f"the state of the text was lost at position {row.start}")
        if row.start < len(ids):
            new, ids, cache = ids[: row.start] + new, [], None
        if cache is None:
            cache = DynamicCache(config=self._model.config)
        device = self._model.get_input_embeddings().weight.device
        out = self._model(input_ids=torch.tensor([new], device=device), past_key_values=cache, use_cache=True)
        self._held[row.slot] = (ids + new, cache)
        logits: Tensor = out.logits[0, out.logits.shape[1] - row.num_logits :]
        return logits


def _state_bytes(cache: Any) -> int:
    """Bytes of all tensors in a cache's layers, whatever they are called."""
    tensors = [value for layer in cache.layers for value in vars(layer).values() if isinstance(value, Tensor)]
    return sum(tensor.nbytes for tensor in tensors)


def choose_runner(model: Any, name: str, kind: type[SlotRunner] | None = None) -> Runner:
    """Returns the fastest runner whose logits equal the model's plain forward on a short trial.

    Args:
        model: A causal LM of transformers, in eval mode.
        name: What its member is called.
        kind: The batched runner to try; default `SlotRunner`.
    """
    reason = _why_not_slots(model)
    if reason is None:
        runner = (kind or SlotRunner)(model)
        try:
            if _trial(model, runner):
                runner.keep(0, 0)
                return runner
            reason = "its batched logits differ from its plain forward"
        except Exception as error:
            # Whatever an unknown architecture raises, the plain way still works.
            reason = f"its batched forward failed ({type(error).__name__}: {error})"
    logger.warning("member %s runs row by row, without batching: %s", name, reason)
    return RowRunner(model)


def _layer_windows(config: Any) -> list[tuple[str, int | None]]:
    """Per decoder layer its kind and its sliding window, as transformers' own cache sees them."""
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


def _why_not_slots(model: Any) -> str | None:
    config = model.config.get_text_config(decoder=True)
    try:
        _layer_windows(config)
    except TypeError as error:
        return str(error)
    if "position_ids" not in inspect.signature(model.forward).parameters:
        return "its forward takes no position_ids"
    if model.get_output_embeddings() is None:
        return "it has no output head that can be found"
    if config._attn_implementation not in ("sdpa", "eager"):
        return f"its attention implementation is {config._attn_implementation!r}; load it with 'sdpa'"
    return None


@torch.inference_mode()
def _trial(model: Any, runner: SlotRunner) -> bool:
    """Whether ragged rows, two tokens at once and a cut give the logits of a plain forward."""
    rows = int(model.get_output_embeddings().weight.shape[0])
    a, b = ([(7 * i + shift) % rows for i in range(6)] for shift in (3, 5))
    # Without what a kind of runner compiles: that is checked against this when it is made.
    SlotRunner.forward(runner, [Row(0, 0, tuple(a[:4])), Row(1, 0, tuple(b[:2]))])
    SlotRunner.forward(runner, [Row(1, 2, (a[0], a[1], a[2]))])
    got = SlotRunner.forward(runner, [Row(0, 4, tuple(a[4:])), Row(1, 2, tuple(b[2:3]))])
    device = model.get_input_embeddings().weight.device
    for logits, ids in zip(got, (a, b[:3]), strict=True):
        plain = model(input_ids=torch.tensor([ids], device=device), use_cache=False).logits[0, -1]
        if not same_logits(model, logits[-1], plain):
            return False
    return True


def same_logits(model: Any, one: Tensor, other: Tensor) -> bool:
    """Whether two ways to compute a model's logits agree as far as its dtype and its packing let them."""
    # Packed weights round, and 8-bit ones round by what else is in the batch.
    exact = one.dtype == torch.float32 and not getattr(model, "is_quantized", False)
    limit = 1e-3 if exact else 0.1
    other = other.float()
    return torch.allclose(one.float(), other, rtol=limit, atol=limit * float(other.abs().max()))
