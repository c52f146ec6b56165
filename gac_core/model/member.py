"""A member: one model, its tokenizer and its cache, reached by one message, the `Chunk`.

Knows nothing of the union vocabulary, of other members, or of what a request wants.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gac_core.errors import ConfigError, ModelLoadError
from gac_core.model.checkpoint import Checkpoint, end_ids, member_tokenizer
from gac_core.model.compiled import CompiledRunner
from gac_core.model.costs import ForwardTimes, prior_slope
from gac_core.model.prefill import share, share_parts
from gac_core.model.runner import Row, Runner, SlotRunner, choose_runner
from gac_core.model.slots import SlotTable, common_beginning
from gac_core.tokenization.tokenizer import MemberTokenizer


@dataclass(frozen=True)
class Chunk:
    """The one message to a member.

    "Drop everything this request holds from position ``start`` on, then write these ids, and give me the logits of the
    last ``num_logits`` positions." Prefill, decoding, catching up and cutting back are all this; repeating it is safe.

    Attributes:
        request_id: Whose text it is.
        start: Absolute position of the first id, 0 or more.
        token_ids: The member's own ids, at least one.
        num_logits: How many positions' logits are wanted, counted from the last; 0 or more.
    """

    request_id: str
    start: int
    token_ids: tuple[int, ...]
    num_logits: int = 1


@dataclass(frozen=True)
class ChunkResult:
    """What a member answers to one chunk.

    Attributes:
        logits: Shape ``[num_logits, rows]``; the exception that this chunk met; or None where the chunk is so long
            that a part of it is left for the next time.
        seconds: Its share of the wall time of the forward it ran in.
        read: How many of its ids are in the cache now, counted from its start.
        computed: How many of them the model read now; the others were there already.
    """

    logits: Tensor | BaseException | None
    seconds: float = 0.0
    read: int = 0
    computed: int = 0


class Member:
    """One model of an ensemble.

    Args:
        name: What it is called.
        tokenizer: Its tokenizer.
        runner: What computes its logits.
        context: The longest text it can read, in tokens; None for no limit.
        device: Where its logits come out.
        size: Parameters of its model.
        slope: How much longer a forward takes for each further token in it, as a share, until that is measured.
        cache_bytes: Memory for keys and values up to which those of finished requests are kept.
        prefill_tokens: Tokens of long chunks to read in one forward at most, 2 or more.
        prefill_seconds: Seconds that reading long chunks may take in one call beside other requests; the measured time
            of earlier ones decides how many tokens that is, 16 at least and ``prefill_tokens`` at most.
        deterministic: Run one request per forward, split long chunks at fixed positions and reuse no prefixes, so that
            logits do not depend on other requests, bit for bit.
    """

    # Rows of up to this many tokens share one forward; padding them costs less than a second reading of the weights.
    SHORT = 8
    # Tokens of long chunks that are read in one call at least, however long that takes.
    LEAST_PART = 16

    def __init__(
        self,
        name: str,
        tokenizer: MemberTokenizer,
        runner: Runner,
        context: int | None,
        device: torch.device,
        size: int = 1,
        slope: float = 0.1,
        cache_bytes: int = 2**30,
        prefill_tokens: int = 512,
        prefill_seconds: float = 0.25,
        deterministic: bool = False,
    ) -> None:
        self.name = name
        self.tokenizer = tokenizer
        self.context = context
        self.device = device
        self.size = size
        self.times = ForwardTimes(device, slope)
        self._runner = runner
        self.deterministic = deterministic
        self._slots = SlotTable(runner, cache_bytes, reuse=not deterministic)
        self._prefill_tokens = prefill_tokens
        self._prefill_seconds = prefill_seconds
        self._no_logits = torch.empty(0, tokenizer.rows, device=device)

    @classmethod
    def load(cls, checkpoint: Checkpoint, **settings: Any) -> Member:
        """Loads a model and its tokenizer.

        Args:
            checkpoint: What to load, and how.
            **settings: ``cache_bytes``, ``prefill_tokens``, ``prefill_seconds`` and ``deterministic``.

        Raises:
            ModelLoadError: Something could not be loaded.
        """
        config = checkpoint.config
        return cls.from_model(*checkpoint.load(), config.called, config.context, config.compile, **settings)

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        name: str,
        context: int | None = None,
        compile: bool = False,
        **settings: Any,
    ) -> Member:
        """Makes a member of a loaded model and tokenizer; the model must not be used elsewhere meanwhile.

        Args:
            model: A causal LM of transformers.
            tokenizer: Its tokenizer.
            name: What the member is called.
            context: The longest text it may read, in tokens; default what the model's config says.
            compile: Compile its forwards of a few tokens.
            **settings: ``cache_bytes``, ``prefill_tokens``, ``prefill_seconds`` and ``deterministic``.
        """
        model.eval()
        head = model.get_output_embeddings()
        rows = int(head.weight.shape[0]) if head is not None else int(model.config.get_text_config().vocab_size)
        limit = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
        if limit is not None and (isinstance(limit, bool) or not isinstance(limit, int) or limit < 1):
            raise ModelLoadError(name, f"the max_position_embeddings of its config.json must be above 0, not {limit!r}")
        if context is not None and limit is not None and context > limit:
            raise ConfigError(
                f"the context of member {name!r} is set to {context}, but its model reads at most {limit}"
            )
        device = next(model.parameters()).device if head is None else head.weight.device
        return cls(
            name=name,
            tokenizer=member_tokenizer(name, tokenizer, end_ids(name, model, tokenizer, rows), rows),
            runner=choose_runner(model, name, CompiledRunner if compile else SlotRunner),
            context=context or limit,
            size=model.num_parameters(),
            device=device,
            slope=prior_slope(device, model.dtype),
            **settings,
        )

    def forward(self, chunks: Sequence[Chunk], crowded: bool = False) -> list[ChunkResult]:
        """Runs the chunks, batched, and returns a result for each in the same order.

        Ids that the cache holds at their place already are not read again. Long chunks are read in parts. A chunk that
        fails does not touch the others: if a batch raises, its chunks run again one by one.

        Args:
            chunks: What to run.
            crowded: Whether other requests wait for it, so that the time of parts is bounded.
        """
        rows, errors = self._rows(chunks, self._budget(crowded))
        results = [ChunkResult(errors.get(index)) for index in range(len(chunks))]
        for group in self._groups(rows):
            for index, result in zip(group, self._run([rows[i] for i in group]), strict=True):
                results[index] = result
        return [self._result(*each) for each in zip(chunks, rows, results, strict=True)]

    def _budget(self, crowded: bool) -> int:
        """Tokens of long chunks to read in one call; of deterministic ones always the same."""
        if not crowded or self.deterministic:
            return self._prefill_tokens
        return min(self._prefill_tokens, max(self.LEAST_PART, self.times.tokens_within(self._prefill_seconds)))

    def _rows(self, chunks: Sequence[Chunk], budget: int) -> tuple[list[Row], dict[int, BaseException]]:
        """What to run of each chunk, a row without ids where that is nothing; and why some got no slot."""
        rows: list[Row] = []
        errors: dict[int, BaseException] = {}
        for index, chunk in enumerate(chunks):
            slot = self._slots.slot(chunk.request_id)
            if slot is None and not self.deterministic and self._being_read(chunk, chunks[:index]):
                rows.append(Row(-1, chunk.start, (), 0))
                continue
            try:
                slot = self._slots.claim(chunk.request_id, chunk.token_ids) if slot is None else slot
            except BaseException as error:
                # No memory for one more slot; the others have theirs.
                rows.append(Row(-1, chunk.start, (), 0))
                errors[index] = error
                continue
            held = self._slots.held(slot)[chunk.start :]
            known = min(common_beginning(held, chunk.token_ids), len(chunk.token_ids) - chunk.num_logits)
            rows.append(Row(slot, chunk.start + known, chunk.token_ids[known:], chunk.num_logits))
        long = [index for index, row in enumerate(rows) if len(row.token_ids) > self.SHORT]
        lengths = [len(rows[index].token_ids) for index in long]
        if self.deterministic:
            shares = share_parts([rows[index].start for index in long], lengths, budget)
        else:
            shares = share(lengths, budget)
        for index, tokens in zip(long, shares, strict=True):
            row = rows[index]
            if tokens < len(row.token_ids):
                rows[index] = Row(row.slot, row.start, row.token_ids[:tokens], 0)
        return rows, errors

    def _being_read(self, chunk: Chunk, others: Sequence[Chunk]) -> bool:
        """Whether another request is about to read the beginning of this one, which can then be copied."""
        for other in others:
            slot = self._slots.slot(other.request_id)
            if slot is not None and self._runner.can_cut:
                held = self._slots.held(slot)
                common = common_beginning([*held[: other.start], *other.token_ids], chunk.token_ids)
                if common >= common_beginning(held, chunk.token_ids) + self._slots.LEAST:
                    return True
        return False

    def _result(self, chunk: Chunk, row: Row, result: ChunkResult) -> ChunkResult:
        if isinstance(result.logits, BaseException):
            return result
        if row.token_ids:
            # What lay after them may be overwritten: short rows are padded to the width of their forward.
            self._slots.held(row.slot)[row.start :] = row.token_ids
        read = row.start + len(row.token_ids) - chunk.start
        done = read == len(chunk.token_ids) and row.slot >= 0
        logits = result.logits if result.logits is not None else self._no_logits
        return ChunkResult(logits if done else None, result.seconds, read, len(row.token_ids))

    def _groups(self, rows: Sequence[Row]) -> list[list[int]]:
        """Rows of similar length run together: short ones at once, longer ones by powers of two.

        Where results must not depend on other rows, each runs alone.
        """
        if self.deterministic:
            return [[index] for index, row in enumerate(rows) if row.token_ids]
        groups: dict[int, list[int]] = {}
        for index, row in enumerate(rows):
            length = len(row.token_ids)
            if length:
                groups.setdefault(0 if length <= self.SHORT else length.bit_length(), []).append(index)
        return list(groups.values())

    def _run(self, rows: Sequence[Row]) -> list[ChunkResult]:
        began = time.perf_counter()
        try:
            self._slots.fit(max(row.start + len(row.token_ids) for row in rows))
            with self._timed(rows):
                computed = self._runner.forward(rows)
            logits = [self._checked(*each) for each in zip(rows, computed, strict=True)]
        except BaseException as error:
            # Out of memory, a bad id, a broken kernel: find out whose it is, and let the others go on. SystemExit and
            # its like, raised within a model, are failures as well and end no thread.
            if len(rows) > 1:
                return [result for row in rows for result in self._run([row])]
            return [ChunkResult(error, time.perf_counter() - began)]
        seconds = (time.perf_counter() - began) / len(rows)
        return [ChunkResult(part, seconds) for part in logits]

    def _checked(self, row: Row, logits: Any) -> Tensor | Exception:
        """The logits of a row, or an error if the runner returned anything else."""
        if not isinstance(logits, Tensor):
            return TypeError(f"its runner returned a {type(logits).__name__} instead of logits")
        expected = (row.num_logits, self.tokenizer.rows)
        if logits.shape != expected or not logits.is_floating_point():
            return ValueError(
                f"its runner returned logits of shape {list(logits.shape)} and dtype {logits.dtype}; "
                f"expected a floating-point tensor of shape {list(expected)}"
            )
        return logits

    def _timed(self, rows: Sequence[Row]) -> AbstractContextManager[None]:
        """Measures a forward: short rows for what a draft costs, longer ones for what a part of a prompt does."""
        width = max(len(row.token_ids) for row in rows)
        if width <= self.SHORT:
            return self.times.timed(width * len(rows))
        return self.times.timed_long(sum(len(row.token_ids) for row in rows))

    def release(self, request_id: str, clear: bool = False) -> None:
        """Gives a request's slot back; what it holds is kept for prompts that begin alike.

        Args:
            request_id: The request.
            clear: Overwrite what the slot holds, after a failure.
        """
        self._slots.release(request_id, clear)
