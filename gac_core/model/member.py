"""`Member`: one model with its tokenizer and KV cache, which computes the logits of chunks."""

from __future__ import annotations

import copy
import itertools
import threading
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gac_core.errors import ConfigError
from gac_core.model.chunk import Chunk, ChunkResult
from gac_core.model.costs import ForwardTimes, prior_slope
from gac_core.model.entries import DocumentCache, Entry, PrefixEntries
from gac_core.model.loaded import LoadedModel
from gac_core.model.options import MIN_PART_TOKENS, MemberOptions
from gac_core.model.planning import MAX_SHORT_ROW, ForwardPlanner, Job
from gac_core.model.runner import Row
from gac_core.model.runner_choice import choose_runner
from gac_core.model.slots import SlotTable

_ids = itertools.count()


@dataclass(frozen=True)
class _Output:
    """The logits of one row, shape ``[num_logits, vocab_size]``, or its error; None if nothing was computed."""

    logits: Tensor | BaseException | None
    seconds: float = 0.0


class Member:
    """One model with a KV cache of its own.

    Several members, and several names of one member, may share a loaded model. `forward`, `release` and `close` may be
    called from any thread: they hold the lock of the model, so that calls on one model run one after another.

    Args:
        name: The member's name, for errors.
        loaded: The model and its tokenizer.
        options: Limits and modes; default `MemberOptions()`.

    Attributes:
        name: The member's name.
        member_id: Identifies its KV cache, unique in this process; the same under every name (see `renamed`).
        tokenizer: Its tokenizer.
        vision: Encodes prompts with images; None if it reads text alone.
        context: The longest sequence that it can read, in tokens; None without a limit.
        device: Where its logits are computed.
        size: Number of parameters of the model.
        weight_bytes: Memory of its weights, which other members may share.
        weights_id: Equal for members whose weights are the same memory.
        devices: Where its weights are.
        times: Durations of its forwards.
        options: Its limits and modes.

    Raises:
        ConfigError: ``context`` is longer than the model can read.
        ModelLoadError: A forward of another member does not return.
    """

    def __init__(self, name: str, loaded: LoadedModel, options: MemberOptions | None = None) -> None:
        options = options or MemberOptions()
        limit = loaded.max_positions
        if options.context is not None and limit is not None and options.context > limit:
            raise ConfigError(
                f"the context of member {name!r} is set to {options.context}, but its model reads at most {limit}"
            )
        self.name = name
        self.member_id = f"{name}-{next(_ids)}"
        self.tokenizer = loaded.tokenizer if loaded.tokenizer.name == name else loaded.tokenizer.renamed(name)
        self.context = options.context or limit
        self.device = loaded.device
        self.size = loaded.size
        self.weight_bytes = loaded.nbytes
        self.weights_id = str(id(loaded.model))
        self.devices = loaded.devices
        self.times = ForwardTimes(loaded.device, prior_slope(loaded.device, loaded.dtype))
        self.options = options
        self._lock = loaded.lock
        self._closed = threading.Event()
        with loaded.idle(name):
            chosen = choose_runner(loaded, name, options.compile)
        self._runner, self.vision = chosen.runner, chosen.vision
        self._entries = PrefixEntries(name, self._runner, options.document_cache_bytes)
        self._slots = SlotTable(
            self._runner,
            options.cache_bytes,
            prefix_caching=not options.deterministic,
            entries=self._entries if self.keeps_documents else None,
        )
        self._no_logits = torch.empty(0, self.tokenizer.rows, device=loaded.device)

    @classmethod
    def from_model(
        cls,
        model: Any,
        tokenizer: Any,
        name: str,
        context: int | None = None,
        compile: bool = False,
        processor: Any = None,
        **options: Any,
    ) -> Member:
        """Returns a member of a model that was loaded by other means.

        Args:
            model: A causal LM of transformers. Other members may share it; no one else must use it meanwhile.
            tokenizer: Its tokenizer.
            name: The member's name.
            context: As in `MemberOptions`.
            compile: As in `MemberOptions`.
            processor: The processor of a vision-language model, of transformers. Default: it reads text alone.
            **options: Other fields of `MemberOptions`.

        Raises:
            ConfigError: ``context`` is longer than the model can read.
            ModelLoadError: The model's configuration or the tokenizer is damaged.
        """
        loaded = LoadedModel(model, tokenizer, name, processor=processor)
        return cls(name, loaded, MemberOptions(context, compile, **options))

    @property
    def runs_on(self) -> str:
        """Its device: members on one device compute one after another."""
        return str(self.device)

    @property
    def deterministic(self) -> bool:
        """Whether its logits do not depend on other requests, bit for bit."""
        return self.options.deterministic

    @property
    def cache_bytes(self) -> int:
        """Memory of its KV cache; does not wait for a forward."""
        return self._runner.nbytes

    @property
    def keeps_documents(self) -> bool:
        """Whether beginnings of prompts can be kept apart from the slots: batched, and not deterministic."""
        return self._runner.supports_truncation and not self.deterministic

    @property
    def document_cache(self) -> DocumentCache:
        """What is kept of documents; does not wait for a forward."""
        return self._entries.contents

    def renamed(self, name: str) -> Member:
        """Returns this member under another name: the same model, KV cache and ``member_id``."""
        if name == self.name:
            return self
        member = copy.copy(self)
        member.name, member.tokenizer = name, self.tokenizer.renamed(name)
        return member

    def forward(self, chunks: Sequence[Chunk], prefill_seconds: float | None = None) -> list[ChunkResult]:
        """Computes the chunks in batches and returns their results in the same order.

        Ids that are in the KV cache already are not computed again. Long chunks are computed in parts, one per call. If
        a batch raises, its chunks run again one by one, so that an error ends only the chunk that causes it.

        Args:
            chunks: At most one per request.
            prefill_seconds: Seconds that long chunks may take while other requests wait for this call. Durations
                measured before decide how many tokens that is, `MIN_PART_TOKENS` at least and ``prefill_tokens`` at
                most; no effect if deterministic. None (default): no limit but ``prefill_tokens``.
        """
        with self._lock:
            if self._closed.is_set():
                raise RuntimeError(f"member {self.name!r} is closed")
            kept = [self._slots.find_kept(chunk) for chunk in chunks]
            planner = ForwardPlanner(self._slots, self._runner, self.options)
            left = [chunk for chunk, entry in zip(chunks, kept, strict=True) if entry is None]
            planned = planner.plan(left, self._prefill_budget(prefill_seconds))
            computed = iter(self._compute([each for each in planned if isinstance(each, Job)]))
            rest = iter([next(computed) if isinstance(each, Job) else each for each in planned])
            return [next(rest) if entry is None else self._no_forward(entry) for entry in kept]

    def _no_forward(self, entry: Entry) -> ChunkResult:
        """The result of a chunk that asks for an entry which exists."""
        return ChunkResult(self._no_logits, read=len(entry.cache_keys), kept_bytes=entry.nbytes)

    def _prefill_budget(self, seconds: float | None) -> int:
        """Tokens of long chunks to compute in one call; always the same if deterministic."""
        most = self.options.prefill_tokens
        if seconds is None or self.deterministic:
            return most
        return min(most, max(MIN_PART_TOKENS, self.times.tokens_within(seconds)))

    def _compute(self, jobs: Sequence[Job]) -> list[ChunkResult]:
        """Runs the rows of some jobs and returns the results of their chunks, in the same order."""
        outputs = [_Output(None)] * len(jobs)
        for group in self._groups(jobs):
            for index, output in zip(group, self._run([jobs[i].row for i in group]), strict=True):
                outputs[index] = output
        return [self._result(job, output) for job, output in zip(jobs, outputs, strict=True)]

    def _result(self, job: Job, output: _Output) -> ChunkResult:
        if isinstance(output.logits, BaseException):
            return ChunkResult(output.logits, output.seconds)
        row, kept = job.row, None
        if row.token_ids:
            # What follows them may be overwritten: short rows are padded to the width of their forward.
            job.slot.token_ids[row.start :] = job.cache_keys
        try:
            kept = self._kept_bytes(job)
        except BaseException as error:
            return ChunkResult(error, output.seconds)
        read = row.start + len(row.token_ids) - job.chunk.start
        logits = self._no_logits if output.logits is None else output.logits
        done = read == len(job.chunk.token_ids)
        return ChunkResult(logits if done else None, output.seconds, read, len(row.token_ids), kept)

    def _kept_bytes(self, job: Job) -> int | None:
        """Keeps what the chunk asks for, once its slot holds it; returns the size of the entry, or None."""
        keep, held = job.chunk.keep, job.slot.token_ids
        if keep is None or len(held) < keep.length or min(held[: keep.length]) < 0:
            return None
        entry = self._slots.keep(job.slot, keep.length, keep.pinned)
        return None if entry is None else entry.nbytes

    def _groups(self, jobs: Sequence[Job]) -> list[list[int]]:
        """Indices of jobs by forward: short rows, longer ones by powers of two.

        Rows with images run alone, and all rows if deterministic.
        """
        lengths = {index: len(job.row.token_ids) for index, job in enumerate(jobs) if job.row.token_ids}
        alone = [[index] for index in lengths if self.deterministic or jobs[index].row.images is not None]
        groups: dict[int, list[int]] = {}
        for index, length in lengths.items():
            if [index] in alone:
                continue
            groups.setdefault(0 if length <= MAX_SHORT_ROW else length.bit_length(), []).append(index)
        return [*alone, *groups.values()]

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
        if rows[0].images is not None:
            # The times of text would not be known from these.
            return nullcontext()
        width = max(len(row.token_ids) for row in rows)
        if width <= MAX_SHORT_ROW:
            return self.times.timed(width * len(rows))
        return self.times.timed_long(sum(len(row.token_ids) for row in rows))

    def release(self, request_id: str, clear: bool = False, wait: bool = True) -> bool:
        """Frees the slot of a request; what it holds is kept for prefix caching. Unknown requests are ignored.

        Args:
            request_id: The request.
            clear: Erase the slot instead, after a failure.
            wait: Wait for a forward that holds the model. Default True.

        Returns:
            False if a forward holds the model and ``wait`` is False; then nothing was freed.
        """
        if not self._lock.acquire(blocking=wait):
            return False
        try:
            if not self._closed.is_set():
                self._slots.release(request_id, clear)
        finally:
            self._lock.release()
        return True

    def close(self) -> None:
        """Frees the KV cache and drops the model, under every name; waits for a running forward.

        Idempotent. Later forwards raise, later releases do nothing.
        """
        with self._lock:
            self._closed.set()
            self._entries.clear()
            self._runner.close()
