"""A member: one model, its tokenizer and its cache, reached by one message, the `Chunk`.

Knows nothing of the union vocabulary, of other members, or of what a request wants.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gac_core.config import MemberConfig
from gac_core.errors import ConfigError, ModelLoadError
from gac_core.runner import Row, Runner, choose_runner
from gac_core.tokenizer import MemberTokenizer


@dataclass(frozen=True)
class Chunk:
    """The one message to a member.

    "Drop everything this request holds from position ``start`` on, then write these ids, and give me the logits of the
    last ``num_logits`` positions." Prefill, decoding, catching up and cutting back are all this; repeating it is safe.

    Attributes:
        request_id: Whose text it is.
        start: Absolute position of the first id, 0 or more.
        token_ids: The member's own ids, at least one.
        num_logits: How many positions' logits are wanted, counted from the last; 1 or more.
    """

    request_id: str
    start: int
    token_ids: tuple[int, ...]
    num_logits: int = 1


@dataclass(frozen=True)
class ChunkResult:
    """What a member answers to one chunk.

    Attributes:
        logits: Shape ``[num_logits, rows]``, or the exception that this chunk met.
        seconds: Its share of the wall time of the forward it ran in.
    """

    logits: Tensor | Exception
    seconds: float


class Member:
    """One model of an ensemble.

    Args:
        name: What it is called.
        tokenizer: Its tokenizer.
        runner: What computes its logits.
        context: The longest text it can read, in tokens; None for no limit.
        device: Where its logits come out.
    """

    # Rows of up to this many tokens share one forward; padding them costs less than a second reading of the weights.
    SHORT = 8

    def __init__(
        self, name: str, tokenizer: MemberTokenizer, runner: Runner, context: int | None, device: torch.device
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.context = context
        self.device = device
        self._runner = runner
        self._slots: dict[str, int] = {}

    @classmethod
    def load(cls, config: MemberConfig, device: str) -> Member:
        """Loads a model and its tokenizer by name or folder.

        Args:
            config: What to load and how.
            device: Where to put it if the config names neither device nor device_map.

        Raises:
            ModelLoadError: Something could not be loaded.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        common: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
        dtype = config.dtype if config.dtype == "auto" else getattr(torch, config.dtype)
        place = config.device_map if config.device_map is not None else {"": config.device or device}
        try:
            tokenizer = AutoTokenizer.from_pretrained(config.tokenizer or config.model, **common)
            model = AutoModelForCausalLM.from_pretrained(config.model, dtype=dtype, device_map=place, **common)
        except Exception as error:
            # transformers raises OSError, ValueError, ImportError, RuntimeError and more; the user needs one kind.
            first_line = (str(error).splitlines() or [type(error).__name__])[0]
            raise ModelLoadError(
                config.model, f"{first_line} (it must be a folder with a model and tokenizer, or a name on a model hub)"
            ) from error
        if config.chat_template is not None:
            tokenizer.chat_template = config.chat_template
        return cls.from_model(model, tokenizer, config.called, config.context)

    @classmethod
    def from_model(cls, model: Any, tokenizer: Any, name: str, context: int | None = None) -> Member:
        """Makes a member of a loaded model and tokenizer; the model must not be used elsewhere meanwhile."""
        model.eval()
        head = model.get_output_embeddings()
        rows = int(head.weight.shape[0]) if head is not None else int(model.config.get_text_config().vocab_size)
        ends = getattr(model.generation_config, "eos_token_id", None)
        end_ids = [] if ends is None else [ends] if isinstance(ends, int) else list(ends)
        limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if context is not None and limit is not None and context > limit:
            raise ConfigError(
                f"the context of member {name!r} is set to {context}, but its model reads at most {limit}"
            )
        return cls(
            name=name,
            tokenizer=MemberTokenizer(tokenizer, name, end_ids, rows),
            runner=choose_runner(model, name),
            context=context or limit,
            device=next(model.parameters()).device if head is None else head.weight.device,
        )

    def forward(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        """Runs the chunks, batched, and returns a result for each in the same order.

        A chunk that fails does not touch the others: if a batch raises, its chunks run again one by one.
        """
        results: list[ChunkResult | None] = [None] * len(chunks)
        for group in self._groups(chunks):
            for index, result in zip(group, self._run([chunks[i] for i in group]), strict=True):
                results[index] = result
        return [result for result in results if result is not None]

    def _groups(self, chunks: Sequence[Chunk]) -> list[list[int]]:
        """Chunks of similar length run together: short ones at once, longer ones by powers of two."""
        groups: dict[int, list[int]] = {}
        for index, chunk in enumerate(chunks):
            length = len(chunk.token_ids)
            groups.setdefault(0 if length <= self.SHORT else length.bit_length(), []).append(index)
        return list(groups.values())

    def _run(self, chunks: Sequence[Chunk]) -> list[ChunkResult]:
        rows = [Row(self._slot(chunk.request_id), chunk.start, chunk.token_ids, chunk.num_logits) for chunk in chunks]
        began = time.perf_counter()
        try:
            logits: list[Tensor] = self._runner.forward(rows)
        except Exception as error:
            # Out of memory, a bad id, a broken kernel: find out whose it is, and let the others go on.
            if len(chunks) > 1:
                return [result for chunk in chunks for result in self._run([chunk])]
            return [ChunkResult(error, time.perf_counter() - began)]
        seconds = (time.perf_counter() - began) / len(chunks)
        return [ChunkResult(part, seconds) for part in logits]

    def _slot(self, request_id: str) -> int:
        slot = self._slots.get(request_id)
        if slot is None:
            taken = set(self._slots.values())
            slot = next(i for i in range(len(taken) + 1) if i not in taken)
            self._slots[request_id] = slot
        return slot

    def release(self, request_id: str, clear: bool = False) -> None:
        """Gives a request's slot back.

        Args:
            request_id: The request.
            clear: Also overwrite what the slot holds, after a failure.
        """
        slot = self._slots.pop(request_id, None)
        if slot is not None and clear:
            self._runner.clear(slot)
