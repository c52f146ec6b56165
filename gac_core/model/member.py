"""A member: one model, its tokenizer and its cache, reached by one message, the `Chunk`.

Knows nothing of the union vocabulary, of other members, or of what a request wants.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from gac_core.errors import ConfigError, ModelLoadError
from gac_core.model.checkpoint import Checkpoint, end_ids, member_tokenizer
from gac_core.model.chunk import Chunk, ChunkResult
from gac_core.model.compiled import CompiledRunner
from gac_core.model.costs import ForwardTimes, prior_slope
from gac_core.model.prefill import share, share_parts
from gac_core.model.runner import Row, Runner, SlotRunner, choose_runner
from gac_core.model.slots import MIN_PREFIX_TOKENS, Slot, SlotTable, common_prefix_length
from gac_core.tokenization.tokenizer import MemberTokenizer

_IDS = itertools.count()


MAX_SHORT_ROW = 8
"""Rows of up to this many tokens share one forward: padding them costs less than reading the weights once more."""

MIN_PART_TOKENS = 16
"""Tokens of long chunks that one call computes at least, however long that takes."""


@dataclass
class _Job:
    """What one call computes of a chunk.

    Attributes:
        chunk: The chunk.
        slot: The slot of its request.
        row: What remains to be computed; its ids may be empty.
    """

    chunk: Chunk
    slot: Slot
    row: Row


@dataclass(frozen=True)
class _Output:
    """The logits of one row, shape ``[num_logits, vocab_size]``, or its error; None if nothing was computed."""

    logits: Tensor | BaseException | None
    seconds: float = 0.0


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
        self.member_id = f"{name}-{next(_IDS)}"
        self.tokenizer = tokenizer
        self.context = context
        self.device = device
        self.size = size
        self.times = ForwardTimes(device, slope)
        self._runner = runner
        self.deterministic = deterministic
        self._slots = SlotTable(runner, cache_bytes, prefix_caching=not deterministic)
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
        """Computes the chunks in batches and returns their results in the same order.

        Ids that are in the KV cache already are not computed again. Long chunks are computed in parts, one per call. If
        a batch raises, its chunks run again one by one, so that an error ends only the chunk that causes it.

        Args:
            chunks: At most one per request.
            crowded: Whether other requests wait for this call, so that the time for parts of long chunks is limited.
        """
        planned = self._plan(chunks, self._prefill_budget(crowded))
        computed = iter(self._compute([each for each in planned if isinstance(each, _Job)]))
        return [next(computed) if isinstance(each, _Job) else each for each in planned]

    def _prefill_budget(self, crowded: bool) -> int:
        """Tokens of long chunks to compute in one call; always the same if deterministic."""
        if not crowded or self.deterministic:
            return self._prefill_tokens
        return min(self._prefill_tokens, max(MIN_PART_TOKENS, self.times.tokens_within(self._prefill_seconds)))

    def _plan(self, chunks: Sequence[Chunk], budget: int) -> list[_Job | ChunkResult]:
        """What to compute of each chunk; its result instead if nothing of it can be computed now."""
        planned = [self._job(chunk, chunks[:index]) for index, chunk in enumerate(chunks)]
        long = [job for job in planned if isinstance(job, _Job) and len(job.row.token_ids) > MAX_SHORT_ROW]
        lengths = [len(job.row.token_ids) for job in long]
        if self.deterministic:
            shares = share_parts([job.row.start for job in long], lengths, budget)
        else:
            shares = share(lengths, budget)
        for job, tokens in zip(long, shares, strict=True):
            if tokens < len(job.row.token_ids):
                job.row = replace(job.row, token_ids=job.row.token_ids[:tokens], num_logits=0)
        return planned

    def _job(self, chunk: Chunk, earlier: Sequence[Chunk]) -> _Job | ChunkResult:
        slot = self._slots.find(chunk.request_id)
        if slot is None:
            if not self.deterministic and self._shares_prefix(chunk, earlier):
                # Waits until that prefix is in the cache, to copy it.
                return ChunkResult(None)
            try:
                slot = self._slots.claim(chunk.request_id, chunk.token_ids)
            except BaseException as error:
                # No memory for one more slot; the other chunks have theirs.
                return ChunkResult(error)
        cached = common_prefix_length(slot.token_ids[chunk.start :], chunk.token_ids)
        cached = min(cached, len(chunk.token_ids) - chunk.num_logits)
        return _Job(chunk, slot, Row(slot.index, chunk.start + cached, chunk.token_ids[cached:], chunk.num_logits))

    def _shares_prefix(self, chunk: Chunk, earlier: Sequence[Chunk]) -> bool:
        """Whether an earlier chunk of this call is about to compute a prefix of this one."""
        for other in earlier:
            slot = self._slots.find(other.request_id)
            if slot is not None and self._runner.supports_truncation:
                common = common_prefix_length([*slot.token_ids[: other.start], *other.token_ids], chunk.token_ids)
                if common >= common_prefix_length(slot.token_ids, chunk.token_ids) + MIN_PREFIX_TOKENS:
                    return True
        return False

    def _compute(self, jobs: Sequence[_Job]) -> list[ChunkResult]:
        """Runs the rows of some jobs and returns the results of their chunks, in the same order."""
        outputs = [_Output(None)] * len(jobs)
        for group in self._groups(jobs):
            for index, output in zip(group, self._run([jobs[i].row for i in group]), strict=True):
                outputs[index] = output
        return [self._result(job, output) for job, output in zip(jobs, outputs, strict=True)]

    def _result(self, job: _Job, output: _Output) -> ChunkResult:
        if isinstance(output.logits, BaseException):
            return ChunkResult(output.logits, output.seconds)
        row = job.row
        if row.token_ids:
            # What follows them may be overwritten: short rows are padded to the width of their forward.
            job.slot.token_ids[row.start :] = row.token_ids
        read = row.start + len(row.token_ids) - job.chunk.start
        logits = self._no_logits if output.logits is None else output.logits
        done = read == len(job.chunk.token_ids)
        return ChunkResult(logits if done else None, output.seconds, read, len(row.token_ids))

    def _groups(self, jobs: Sequence[_Job]) -> list[list[int]]:
        """Indices of jobs that share a forward: all short rows, and longer ones by powers of two.

        If results must not depend on other requests, each runs alone.
        """
        lengths = {index: len(job.row.token_ids) for index, job in enumerate(jobs) if job.row.token_ids}
        if self.deterministic:
            return [[index] for index in lengths]
        groups: dict[int, list[int]] = {}
        for index, length in lengths.items():
            groups.setdefault(0 if length <= MAX_SHORT_ROW else length.bit_length(), []).append(index)
        return list(groups.values())

    def _run(self, rows: Sequence[Row]) -> list[_Output]:
        """Runs rows in one forward; after an error one by one."""
        began = time.perf_counter()
        try:
            self._slots.evict(max(row.start + len(row.token_ids) for row in rows))
            with self._timed(rows):
                computed = self._runner.forward(rows)
            logits = [self._checked(*each) for each in zip(rows, computed, strict=True)]
        except BaseException as error:
            # Out of memory, an invalid id, a failing kernel: only the row that causes it shall fail. SystemExit and
            # its like, raised within a model, are errors as well and end no thread.
            if len(rows) > 1:
                return [output for row in rows for output in self._run([row])]
            return [_Output(error, time.perf_counter() - began)]
        seconds = (time.perf_counter() - began) / len(rows)
        return [_Output(part, seconds) for part in logits]

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
        """Measures a forward: of short rows to predict the cost of drafts, of longer ones that of parts of prompts."""
        width = max(len(row.token_ids) for row in rows)
        if width <= MAX_SHORT_ROW:
            return self.times.timed(width * len(rows))
        return self.times.timed_long(sum(len(row.token_ids) for row in rows))

    def release(self, request_id: str, clear: bool = False) -> None:
        """Frees the slot of a request; what it holds is kept for prefix caching. Unknown requests are ignored.

        Args:
            request_id: The request.
            clear: Erase the slot instead, after a failure.
        """
        self._slots.release(request_id, clear)
