"""Durations of the forwards of one model: of short ones by their tokens, and of long ones per token.

Drafting compares the cost of short forwards; prefill limits its parts by the duration per token.
"""

from __future__ import annotations

import statistics
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass

import torch

# What each further token adds to a forward's duration, relative to a forward of one token, before anything is measured:
# the weights are read once, and arithmetic takes noticeable time only in float32 on a CPU.
SLOPES = {"float32": 0.1, "half": 0.03, "gpu": 0.01}


def prior_slope(device: torch.device, dtype: torch.dtype) -> float:
    """Returns what each further token adds to the duration of a forward, relative to one token, before measuring."""
    return SLOPES["gpu" if device.type != "cpu" else "float32" if dtype == torch.float32 else "half"]


@dataclass(frozen=True)
class _PendingEvents:
    """A forward on a GPU whose events may not have occurred yet."""

    note: Callable[[int, float], None]
    tokens: int
    start: torch.cuda.Event
    end: torch.cuda.Event


@dataclass(frozen=True)
class TimesSnapshot:
    """What a `ForwardTimes` has measured, as a value that can be sent to another process.

    Attributes:
        total: As `ForwardTimes.total`.
        medians: Median seconds of the recent short forwards, by their number of tokens.
        long: Seconds per token of the latest forwards of parts of prompts.
    """

    total: float
    medians: Mapping[int, float]
    long: tuple[float, ...]


class ForwardTimes:
    """Medians of the durations of recent forwards. Safe to use from many threads.

    Args:
        device: Where the model runs. On a GPU, durations are taken between two events, without synchronising.
        slope: What each further token adds to a forward's duration, relative to one token, where nothing is measured.

    Attributes:
        total: Seconds of all short forwards so far.
    """

    # Durations that a median is taken of: of short forwards, and of long ones, which depend on the text's length.
    RECENT = 9
    LATEST = 3

    def __init__(self, device: torch.device, slope: float) -> None:
        self._device = device
        self._slope = slope
        # Engines read durations while another one's forward of the same model is measured.
        self._lock = threading.RLock()
        self.total = 0.0
        self._recent: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._pending: deque[_PendingEvents] = deque()
        # Seconds per token.
        self._long: deque[float] = deque(maxlen=self.LATEST)

    def timed(self, tokens: int) -> AbstractContextManager[None]:
        """Measures a short forward; one that raises is ignored.

        Args:
            tokens: New tokens in it, padding included.
        """
        return self._measured(tokens, self.note)

    def timed_long(self, tokens: int) -> AbstractContextManager[None]:
        """Measures a forward of a part of a prompt; one that raises is ignored.

        Args:
            tokens: New tokens in it.
        """
        return self._measured(tokens, self.note_long)

    @contextmanager
    def _measured(self, tokens: int, note: Callable[[int, float], None]) -> Iterator[None]:
        if self._device.type != "cuda":
            began = time.perf_counter()
            yield
            note(tokens, time.perf_counter() - began)
            return
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(self._device)
        start.record(stream)
        yield
        end.record(stream)
        with self._lock:
            self._pending.append(_PendingEvents(note, tokens, start, end))
            self._collect()

    def _collect(self) -> None:
        """Notes the forwards that a GPU has completed."""
        with self._lock:
            while self._pending and self._pending[0].end.query():  # type: ignore[no-untyped-call]
                done = self._pending.popleft()
                done.note(done.tokens, done.start.elapsed_time(done.end) / 1000)

    def note_long(self, tokens: int, seconds: float) -> None:
        """Records a forward of a part of a prompt."""
        with self._lock:
            self._long.append(seconds / tokens)

    def tokens_within(self, seconds: float) -> int:
        """Returns how many tokens of a prompt a forward computes within a time; 0 before the first one."""
        with self._lock:
            self._collect()
            return int(seconds / max(statistics.median(self._long), 1e-9)) if self._long else 0

    def note(self, tokens: int, seconds: float) -> None:
        """Records a short forward; of the first one of each size only `total` takes account."""
        with self._lock:
            self.total += seconds
            if tokens not in self._recent:
                # The first forward of a size may compile or select kernels; its duration is no estimate.
                self._recent[tokens] = deque(maxlen=self.RECENT)
                return
            recent = self._recent[tokens]
            recent.append(seconds)
            self._medians[tokens] = statistics.median(recent)

    def seconds(self, tokens: int) -> float:
        """Returns the expected duration of a short forward, in seconds; 0 before anything is measured.

        Interpolates between measured sizes; beyond them the duration grows by the slope.

        Args:
            tokens: New tokens in it, padding included.
        """
        with self._lock:
            below = max((size for size in self._medians if size <= tokens), default=None)
            above = min((size for size in self._medians if size >= tokens), default=None)
            if below is None and above is None:
                return 0.0
            if below is None or above is None:
                near = above if below is None else below
                assert near is not None
                return self._medians[near] * self._shape(tokens) / self._shape(near)
            low, high = self._medians[below], self._medians[above]
            return low if above == below else low + (high - low) * (tokens - below) / (above - below)

    def snapshot(self) -> TimesSnapshot:
        """Returns what was measured so far."""
        with self._lock:
            self._collect()
            return TimesSnapshot(self.total, dict(self._medians), tuple(self._long))

    def restore(self, snapshot: TimesSnapshot) -> None:
        """Replaces what was measured by what another process measured; durations noted later count on top of it."""
        with self._lock:
            self.total = snapshot.total
            self._medians = dict(snapshot.medians)
            self._long = deque(snapshot.long, maxlen=self.LATEST)

    def _shape(self, tokens: int) -> float:
        return 1 + self._slope * (tokens - 1)
