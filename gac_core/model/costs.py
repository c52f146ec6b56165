"""How long the forwards of one model take: short ones by their tokens, for drafts; long ones per token, for prompts.

Knows seconds and devices; knows nothing of models or requests.
"""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import torch

# How much longer a forward takes for each further token in it, as a share of one with one token, where none was
# measured yet: the weights are read once, and what is computed with them counts on a CPU in float32 alone.
SLOPES = {"float32": 0.1, "half": 0.03, "gpu": 0.01}


def prior_slope(device: torch.device, dtype: torch.dtype) -> float:
    """Returns the share of a forward's time that each further token is taken to add before it is measured."""
    return SLOPES["gpu" if device.type != "cpu" else "float32" if dtype == torch.float32 else "half"]


class ForwardTimes:
    """Medians of recent forwards; of short ones without the first of each size.

    Args:
        device: Where the model runs. On a GPU the time between two events is taken, without waiting for them.
        slope: Share of a forward's time that each further token is taken to add where nothing was measured.

    Attributes:
        total: Seconds of all short forwards so far.
    """

    RECENT = 9
    LATEST = 3

    def __init__(self, device: torch.device, slope: float) -> None:
        self._device = device
        self._slope = slope
        self.total = 0.0
        self._recent: dict[int, deque[float]] = {}
        self._medians: dict[int, float] = {}
        self._pending: deque[tuple[Callable[[int, float], None], int, torch.cuda.Event, torch.cuda.Event]] = deque()
        # Seconds per token of the latest long forwards; few, since they grow with the text that is read.
        self._long: deque[float] = deque(maxlen=self.LATEST)

    def timed(self, tokens: int) -> AbstractContextManager[None]:
        """Measures a short forward; one that raises is not noted.

        Args:
            tokens: New tokens in it, padding included.
        """
        return self._measured(tokens, self.note)

    def timed_long(self, tokens: int) -> AbstractContextManager[None]:
        """Measures a forward of a part of a prompt, of so many tokens; one that raises is not noted."""
        return self._measured(tokens, self.note_long)

    @contextmanager
    def _measured(self, tokens: int, note: Callable[[int, float], None]) -> Iterator[None]:
        if self._device.type != "cuda":
            began = time.perf_counter()
            yield
            note(tokens, time.perf_counter() - began)
            return
        events = [torch.cuda.Event(enable_timing=True) for _ in range(2)]  # type: ignore[no-untyped-call]
        stream = torch.cuda.current_stream(self._device)
        events[0].record(stream)
        yield
        events[1].record(stream)
        self._pending.append((note, tokens, events[0], events[1]))
        self._collect()

    def _collect(self) -> None:
        while self._pending and self._pending[0][3].query():  # type: ignore[no-untyped-call]
            note, tokens, start, end = self._pending.popleft()
            note(tokens, start.elapsed_time(end) / 1000)

    def note_long(self, tokens: int, seconds: float) -> None:
        """Takes in a forward of a part of a prompt."""
        self._long.append(seconds / tokens)

    def tokens_within(self, seconds: float) -> int:
        """Returns how many tokens of a prompt a forward reads within a time, by the latest ones; 0 before the first."""
        self._collect()
        return int(seconds / max(statistics.median(self._long), 1e-9)) if self._long else 0

    def note(self, tokens: int, seconds: float) -> None:
        """Takes in a forward of so many tokens."""
        self.total += seconds
        if tokens not in self._recent:
            # The first forward of a size may compile or choose kernels, which says nothing of the next one.
            self._recent[tokens] = deque(maxlen=self.RECENT)
            return
        recent = self._recent[tokens]
        recent.append(seconds)
        self._medians[tokens] = statistics.median(recent)

    def seconds(self, tokens: int) -> float:
        """Returns what a forward of so many tokens takes, in seconds; 0 before the first one.

        Between measured sizes it is interpolated; beyond them it grows by the slope.
        """
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

    def _shape(self, tokens: int) -> float:
        return 1 + self._slope * (tokens - 1)
