"""Bytes to text: incremental UTF-8 that holds back half characters and possible stop strings.

Knows nothing of tokens, members or requests: bytes go in, text that is certain comes out.
"""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """Turns growing bytes into text that will not change any more.

    Bytes that are not valid UTF-8 come out as U+FFFD, as in ``bytes.decode(errors="replace")``. A stop string is found
    across any number of pieces, and neither it nor what follows it is ever given out.

    Args:
        stop: Strings that end the text. Empty strings are not allowed.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._held = ""
        self.stopped_by: str | None = None

    def push(self, data: bytes) -> str:
        """Takes more bytes and returns the text that is now certain; sets ``stopped_by`` at a stop string."""
        return self._take(self._decoder.decode(data), final=False)

    def flush(self) -> str:
        """Returns whatever is still held back; half a character becomes U+FFFD."""
        return self._take(self._decoder.decode(b"", final=True), final=True)

    def _take(self, text: str, final: bool) -> str:
        if self.stopped_by is not None:
            return ""
        self._held += text
        found = [(self._held.find(stop), stop) for stop in self._stop if stop in self._held]
        if found:
            # The earliest match ends the text; of two at one place the longer, so that the order given does not matter.
            at, self.stopped_by = min(found, key=lambda item: (item[0], -len(item[1])))
            out, self._held = self._held[:at], ""
            return out
        keep = 0 if final else self._possible_stop_length()
        cut = len(self._held) - keep
        out, self._held = self._held[:cut], self._held[cut:]
        return out

    def _possible_stop_length(self) -> int:
        """Length of the longest end of the held text that could begin a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._held)), longest, -1):
                if self._held.endswith(stop[:length]):
                    longest = length
                    break
        return longest
