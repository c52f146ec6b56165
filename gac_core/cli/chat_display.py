"""How ``gac chat`` shows answers: each token in the colour of its confidence where the output is a terminal."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from rich.console import Console
from rich.style import Style

from gac_core.output import OutputChunk
from gac_core.token_stats import TokenStats
from gac_core.trace.levels import LEVELS, Level, level_of
from gac_core.trace.visible import characters, printable


class StreamedConfidence:
    """Finds the confidence of each part of a streamed text, which may lag behind its tokens or leave some out."""

    def __init__(self) -> None:
        self._pending: deque[tuple[bytes, float]] = deque()
        self._last = 1.0

    def push(self, tokens: Iterable[TokenStats]) -> None:
        """Adds the next tokens."""
        self._pending.extend((token.token, token.confidence) for token in tokens)

    def split(self, text: str) -> list[tuple[str, float]]:
        """Returns the next part of the text by tokens, each with its confidence.

        A character of several tokens belongs to the last of them. Tokens that come before the text and are not part of
        it are dropped.
        """
        data = text.encode()
        start = b"".join(token for token, _ in self._pending).find(data)
        if start < 0:
            # Bytes that are not valid UTF-8 were replaced.
            self._last = min((confidence for _, confidence in self._pending), default=self._last)
            self._pending.clear()
            return [(text, self._last)]
        self._take(start)
        parts = self._take(len(data))
        texts = characters(part for part, _ in parts)
        return [(each.decode(), confidence) for each, (_, confidence) in zip(texts, parts, strict=True) if each]

    def _take(self, count: int) -> list[tuple[bytes, float]]:
        """Removes so many bytes and returns them by tokens."""
        taken = []
        while count:
            token, confidence = self._pending.popleft()
            if len(token) > count:
                self._pending.appendleft((token[count:], confidence))
            taken.append((token[:count], confidence))
            count -= len(taken[-1][0])
        return taken


class Display:
    """Writes answers and messages.

    Args:
        console: Where to. Colours are used if it is a terminal.
    """

    def __init__(self, console: Console) -> None:
        self._console = console
        self._confidence = StreamedConfidence()

    @property
    def is_terminal(self) -> bool:
        """Whether colours and hints are shown."""
        return self._console.is_terminal

    def begin(self) -> None:
        """Begins an answer."""
        self._confidence = StreamedConfidence()

    def show(self, chunk: OutputChunk) -> None:
        """Writes the text of a chunk; reasoning is dim, and left out where the output is no terminal."""
        self._confidence.push(chunk.token_stats or ())
        if chunk.reasoning and self.is_terminal:
            self._write(chunk.reasoning, Style(dim=True, italic=True))
        if chunk.text:
            for text, confidence in self._confidence.split(chunk.text):
                self._write(text, style_of(level_of(confidence)))

    def _write(self, text: str, style: Style) -> None:
        """Writes a text with a style, except for its line ends: their background would fill the line."""
        for number, line in enumerate(printable(text).split("\n")):
            if number:
                self._console.out("\n", end="")
            if line:
                self._console.out(line, style=style, highlight=False, end="")

    def line(self, text: str = "", dim: bool = False) -> None:
        """Writes a line."""
        self._console.out(printable(text), style=Style(dim=True) if dim else None, highlight=False)

    def legend(self) -> None:
        """Writes what the colours mean."""
        self._write("confidence: ", Style(dim=True))
        for level in LEVELS:
            self._write(f" {level.label} ", style_of(level))
            self._write(" ", Style())
        self.line()


def style_of(level: Level) -> Style:
    """Returns the style of a level: black on its colour, so that it can be read on any terminal."""
    return Style(color="#151515", bgcolor=level.colour) if level.colour else Style()
