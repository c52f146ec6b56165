"""Progress of loading: one bar per member on stderr, or log lines."""

from __future__ import annotations

import logging
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

logger = logging.getLogger(__name__)

Report = Callable[[str, float], None]
"""Takes what is being loaded, and the fraction of the whole that is done before it."""


def silent(stage: str, fraction: float) -> None:
    """Reports nothing."""


def bars_shown(progress: bool | None) -> bool:
    """Returns whether progress bars are shown; arguments as in `EnsembleConfig.progress`."""
    return sys.stderr is not None and (sys.stderr.isatty() if progress is None else progress)


class LoadingProgress:
    """Shows how far members are loaded. Safe to use from many threads.

    On a terminal each member has a bar; elsewhere stages are logged, at the level of information.

    Args:
        names: The members' names; one bar each, in this order.
        shown: Whether to show bars. None: if stderr is a terminal.
    """

    def __init__(self, names: Sequence[str], shown: bool | None = None) -> None:
        shown = bars_shown(shown)
        self._bars = {name: _Bar(name, line) if shown else _Log(name) for line, name in enumerate(names)}

    def of(self, name: str) -> Report:
        """Returns what a member reports its stages to; without a bar of this name, nothing is shown."""
        return self._bars[name].report if name in self._bars else silent

    def close(self) -> None:
        """Leaves the bars as they are."""
        for bar in self._bars.values():
            bar.close()

    def __enter__(self) -> LoadingProgress:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()


class _Log:
    """Logs the stages of a member."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._began = time.monotonic()
        self._stage = ""

    def report(self, stage: str, fraction: float) -> None:
        if stage != self._stage:
            self._stage = stage
            logger.info("member %r: %s, %.1f s after loading began", self._name, stage, time.monotonic() - self._began)

    def close(self) -> None:
        """Nothing is open."""


class _Bar:
    """The bar of a member."""

    def __init__(self, name: str, line: int) -> None:
        # A dependency of transformers.
        from tqdm.std import tqdm

        self._bar = tqdm(
            total=100,
            desc=name,
            position=line,
            file=sys.stderr,
            miniters=1,
            mininterval=0.05,
            bar_format="{desc} |{bar:30}| {percentage:3.0f}%{postfix} [{elapsed}]",
        )

    def report(self, stage: str, fraction: float) -> None:
        with self._bar.get_lock():
            self._bar.set_postfix_str(stage, refresh=False)
            self._bar.update(int(100 * fraction) - self._bar.n)

    def close(self) -> None:
        self._bar.close()


class _Watched:
    """Iterates over items and reports the fraction of them that is done."""

    def __init__(self, items: Sequence[Any], report: Callable[[float], None]) -> None:
        self._items = items
        self._report = report

    def __iter__(self) -> Iterator[Any]:
        count = max(1, len(self._items))
        for index, item in enumerate(self._items):
            yield item
            self._report((index + 1) / count)


@contextmanager
def tensors_reported(report: Callable[[float], None]) -> Iterator[None]:
    """Reports the tensors that transformers loads in this thread, in place of its own progress bar.

    Args:
        report: Takes the fraction of a model's tensors that are loaded.
    """
    from transformers import modeling_gguf_pytorch_utils as gguf
    from transformers.utils import logging as transformers_logging

    thread = threading.get_ident()
    set_hook: Any = transformers_logging.set_tqdm_hook

    def watched(factory: Callable[..., Any], given: Sequence[Any], named: dict[str, Any]) -> Any:
        if threading.get_ident() != thread or not given or not hasattr(given[0], "__len__"):
            return factory(*given, **named)
        return _Watched(given[0], report)

    # transformers reads GGUF files under a bar that has no hook.
    files: Any = gguf
    bar = files.tqdm
    before = set_hook(watched)
    files.tqdm = transformers_logging.tqdm
    try:
        yield
    finally:
        files.tqdm = bar
        set_hook(before)
