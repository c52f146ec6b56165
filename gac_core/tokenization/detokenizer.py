"""Bytes to text: incremental UTF-8 decoding that holds back partial characters and possible stop strings."""

from __future__ import annotations

import codecs
from collections.abc import Sequence


class Detokenizer:
    """Decodes bytes incrementally; returned text never changes.

    Invalid UTF-8 becomes U+FFFD, as in ``bytes.decode(errors="replace")``. A stop string is found across any number of
    pieces; neither the stop string nor the text after it is returned. Of several stop strings the one that is complete
    first ends the text.

    Args:
        stop: Strings that end the text, none of them empty. Default none.

    Attributes:
        stopped_by: The stop string that ended the text, or None.
    """

    def __init__(self, stop: Sequence[str] = ()) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._stop = tuple(stop)
        self._pending = ""
        self.stopped_by: str | None = None

    def push(self, data: bytes) -> str:
        """Decodes further bytes and returns the text that is now certain; sets ``stopped_by`` at a stop string."""
        return self._take(self._decoder.decode(data), final=False)

    def flush(self) -> str:
        """Returns the text that is still held back; a partial character becomes U+FFFD."""
        return self._take(self._decoder.decode(b"", final=True), final=True)

    def _take(self, text: str, final: bool) -> str:
        if self.stopped_by is not None:
            return ""
        self._pending += text
        found = [(self._pending.find(stop), stop) for stop in self._stop if stop in self._pending]
        if found:
            # The match that is complete first ends the text, and of two that end at the same character the longer: so
            # the result depends neither on the division into tokens nor on the order of the stop strings.
            at, self.stopped_by = min(found, key=lambda item: (item[0] + len(item[1]), -len(item[1])))
            out, self._pending = self._pending[:at], ""
            return out
        keep = 0 if final else self._possible_stop_length()
        cut = len(self._pending) - keep
        out, self._pending = self._pending[:cut], self._pending[cut:]
        return out

    def _possible_stop_length(self) -> int:
        """Length of the longest suffix of the pending text that may begin a stop string."""
        longest = 0
        for stop in self._stop:
            for length in range(min(len(stop) - 1, len(self._pending)), longest, -1):
                if self._pending.endswith(stop[:length]):
                    longest = length
                    break
        return longest
