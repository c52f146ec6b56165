"""JSON texts that end within their token budget: masks the tokens after which the text could not be closed in time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from gac_core.errors import GrammarError
from gac_core.tokenization.vocabulary import UnionVocabulary

Bits = npt.NDArray[np.uint8]

# Tokens of a closing in order of preference: ends of containers and strings, then the shortest values.
_PREFERRED = (b"}", b"]", b'"', b",", b"n", b"f", b"t", b"1", b"0", b"[", b"{")
# Tokens that a further token of a string or number may add to the closing: the rest of a character or escape.
_SLACK = 6
# Tokens of content for which a value or item must have room, beside its closing, to be opened.
_CONTENT = 24
# Where more tokens are allowed, only those with structural characters are tried one by one.
_MAX_TRIED = 96
# Longest closing to search for, in tokens; a pattern may have no end.
_MAX_CLOSING = 1024
# Masks computed for one restriction at most; typical numbers are up to a few hundred.
_MAX_MASKS = 4000


class _MaskCounter:
    """Counts the masks computed for one restriction."""

    def __init__(self) -> None:
        self._left = _MAX_MASKS

    def count(self) -> None:
        """Counts one mask.

        Raises:
            GrammarError: Too many masks were computed; the state of the matcher is then undefined.
        """
        self._left -= 1
        if self._left < 0:
            raise GrammarError(
                f"more than {_MAX_MASKS} masks are needed to determine which tokens leave room to close the text; "
                "raise max_tokens, make the schema simpler, or give it without closes=True"
            )


class Closer:
    """Finds closings of JSON texts, and restricts masks so that a closing always fits into the remaining tokens.

    Args:
        union: The union vocabulary.
    """

    def __init__(self, union: UnionVocabulary) -> None:
        self._count = len(union)
        self._end = union.end_id
        self._quote, *self._brackets = (union.ids.get(data, union.end_id) for data in (b'"', b"}", b"]"))
        self._preferred = [union.ids[data] for data in _PREFERRED if data in union.ids]
        structural = [any(char in b'"[]{},:' for char in data) for data in union.tokens]
        opening = [any(char in b'"[{' for char in data) for data in union.tokens]
        self._structural, self._opening = (np.array([*flags, False], bool) for flags in (structural, opening))
        # Within a string, tokens with the same bytes from their quotation mark on lead to the same state.
        self._tails = {
            index: data if data[: data.index(b'"')].endswith(b"\\") else data[data.index(b'"') :]
            for index, data in enumerate(union.tokens)
            if b'"' in data
        }
        self._quoted = np.array(list(self._tails), np.int64)

    def closing(
        self, matcher: LLMatcher, limit: int = _MAX_CLOSING, masks: _MaskCounter | None = None
    ) -> list[int] | None:
        """Returns union tokens that complete the text; few, but not always the fewest.

        Args:
            matcher: The state of the text; unchanged on return.
            limit: Most tokens of the closing. Default 1024.
            masks: Counts the masks that are computed. Default None: they are not counted.

        Returns:
            Union ids without the end of text, empty where the text may end here; None if no closing was found.
        """
        path: list[int] = []
        while len(path) < limit and not (matcher.is_accepting() or matcher.is_stopped()):
            forced = [token for token in matcher.compute_ff_tokens() if token != self._end]
            if not forced and masks is not None:
                masks.count()
            step = forced or self._shortest(matcher)
            taken = matcher.try_consume_tokens(step) if step else 0
            if not taken:
                break
            path += step[:taken]
        done = matcher.is_accepting() or matcher.is_stopped()
        matcher.rollback(len(path))
        return path if done else None

    def restrict(self, matcher: LLMatcher, mask: Bits, left: int, near: int) -> Bits:
        """Removes from a mask the tokens after which the text could not be closed any more.

        Strings and numbers continue while their closing fits. A new value, such as a further item of a list, is allowed
        only if its closing fits together with 24 tokens of content.

        Args:
            matcher: The state of the text; unchanged on return.
            mask: The tokens that the grammar allows next, uint8, 0 or 1, shape ``[union]``.
            left: Remaining tokens, including the next one.
            near: The mask is unchanged while at least this many tokens more than the closing's remain.

        Returns:
            The restricted mask; the given one if it need not be restricted, or no closing was found or fits.

        Raises:
            GrammarError: Too many masks would have to be computed.
        """
        masks = _MaskCounter()
        path = self.closing(matcher, left, masks)
        if not path or len(path) > left or left >= len(path) + near:
            return mask
        allowed = mask.astype(bool)
        kept = np.zeros(self._count, bool)
        if left > len(path) + _SLACK:
            kept = allowed.copy()
            if self._in_string(allowed):
                tried = self._quoted[allowed[self._quoted]]
                fits: dict[bytes, bool] = {}
                for token in tried.tolist():
                    tail = self._tails[token]
                    if tail not in fits:
                        fits[tail] = self._fits(matcher, token, len(path), left - 1, masks)
                    kept[token] = fits[tail]
            else:
                allowed[self._end] = False
                tried = np.flatnonzero(allowed if allowed.sum() <= _MAX_TRIED else allowed & self._structural)
                for token in tried.tolist():
                    kept[token] = self._fits(matcher, token, len(path), left - 1, masks)
        kept[path[0]] = True
        return kept.astype(np.uint8)

    def _in_string(self, allowed: npt.NDArray[np.bool_]) -> bool:
        # Both closing brackets are allowed at once only within a string.
        return bool(allowed[self._quote] and allowed[self._brackets].all())

    def _shortest(self, matcher: LLMatcher) -> list[int]:
        """The first allowed token in order of preference, as a list; empty if no token is allowed."""
        # Several threads compute masks at once; each call has a buffer of its own.
        words = np.zeros((self._count + 31) // 32, np.uint32)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)

        def is_allowed(token: int) -> bool:
            return bool(int(words[token >> 5]) >> (token & 31) & 1)

        if is_allowed(self._quote) and all(map(is_allowed, self._brackets)):
            return [self._quote]
        for token in self._preferred:
            if is_allowed(token):
                return [token]
        bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=self._end)
        return [int(token) for token in np.flatnonzero(bits)[:1]]

    def _fits(self, matcher: LLMatcher, token: int, before: int, left: int, masks: _MaskCounter) -> bool:
        """Whether the text can be closed within ``left`` tokens after a given token."""
        if matcher.try_consume_tokens([token]) == 0:
            return False
        path = self.closing(matcher, left + 1, masks)
        matcher.rollback(1)
        if path is None:
            return False
        return len(path) + (_CONTENT if self._opening[token] and len(path) >= before else 0) <= left
