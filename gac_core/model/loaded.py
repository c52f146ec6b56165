"""`LoadedModel`: a causal language model and its tokenizer in memory, which several members may share."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakKeyDictionary

import torch

from gac_core.errors import ModelLoadError
from gac_core.model.checkpoint_checks import end_ids, image_token_id, member_tokenizer
from gac_core.tokenization.vision import VisionProcessor

IDLE_SECONDS = 600.0
"""How long a new member waits for a forward of another one with the same weights."""

_locks: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()
_locks_lock = threading.Lock()


class LoadedModel:
    """A model in memory with its tokenizer.

    Args:
        model: A causal LM of transformers; put into eval mode.
        tokenizer: Its tokenizer, of transformers.
        name: The member's name, for errors and warnings.
        device: The device by the name that it was placed on, for names that torch does not keep (``"cpu:1"``).
            Default: that of its output head.
        processor: Its processor, of transformers, if it is a vision-language model. Default: it reads text alone.

    Attributes:
        model: The causal LM.
        tokenizer: Its tokenizer, at the level of bytes.
        lock: Held during every forward. It belongs to the causal LM: all who load or wrap the same object share it.
        device: Where its logits are computed.
        dtype: The dtype of its weights.
        size: Number of parameters.
        max_positions: The longest sequence that it can read, in tokens; None without a limit.
        vision: Encodes prompts with images; None if there is no processor.

    Raises:
        ModelLoadError: Its configuration or tokenizer is damaged.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str, device: torch.device | None = None, processor: Any = None
    ) -> None:
        self.model = model.eval()
        self.lock = _lock_of(model)
        head = model.get_output_embeddings()
        rows = int(head.weight.shape[0]) if head is not None else int(model.config.get_text_config().vocab_size)
        here: torch.device = next(model.parameters()).device if head is None else head.weight.device
        self.device = here if device is None else device
        self.dtype: torch.dtype = model.dtype
        self.size = int(model.num_parameters())
        self.max_positions = _max_positions(model, name)
        self.tokenizer = member_tokenizer(name, tokenizer, end_ids(name, model, tokenizer, rows), rows)
        self.vision = None if processor is None else VisionProcessor(processor, image_token_id(name, model.config))

    @contextmanager
    def idle(self, name: str) -> Iterator[None]:
        """Holds the lock, once a forward that runs has returned.

        Args:
            name: The member that asks, for errors.

        Raises:
            ModelLoadError: The forward does not return in time.
        """
        if not self.lock.acquire(timeout=IDLE_SECONDS):
            raise ModelLoadError(
                name,
                f"a forward of another member with the same weights has not returned for {IDLE_SECONDS:.1f} s; close "
                "the ensembles that use them, or load it in a new process",
            )
        try:
            yield
        finally:
            self.lock.release()

    @property
    def devices(self) -> tuple[str, ...]:
        """Where the weights are, in the order of the forward; several if the model is divided."""
        found = tuple(dict.fromkeys(str(tensor.device) for tensor in self.model.parameters()))
        return found if len(found) > 1 else (str(self.device),)

    @property
    def nbytes(self) -> int:
        """Bytes of the weights and buffers."""
        return sum(tensor.nbytes for tensor in (*self.model.parameters(), *self.model.buffers()))


def _max_positions(model: Any, name: str) -> int | None:
    limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
        raise ModelLoadError(name, f"the max_position_embeddings of its config.json must be above 0, not {limit!r}")
    return limit


def _reset_locks() -> None:
    global _locks, _locks_lock
    _locks, _locks_lock = WeakKeyDictionary(), threading.Lock()


if hasattr(os, "register_at_fork"):
    # Threads of the parent may hold locks, and do not exist in the child.
    os.register_at_fork(after_in_child=_reset_locks)


def _lock_of(model: Any) -> threading.RLock:
    with _locks_lock:
        return _locks.setdefault(model, threading.RLock())
