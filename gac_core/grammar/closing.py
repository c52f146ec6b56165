"""JSON texts that end within their token budget: which tokens leave room to close what is open.

Works on llguidance's matchers over the union vocabulary.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from llguidance import LLMatcher

from gac_core.errors import GrammarError
from gac_core.tokenization.vocabulary import UnionVocabulary

Bits = npt.NDArray[np.uint8]

# What closes soonest where there is a choice: containers, strings, numbers, then the shortest values.
_PREFERRED = (b"}", b"]", b'"', b",", b"n", b"f", b"t", b"1", b"0", b"[", b"{")
# Tokens that one more token of a string or number may add to the closing: the rest of a character or of an escape.
_SLACK = 6
# Tokens of content that a value or item which is opened late must have room for, beside its closing.
_CONTENT = 24
# Where more tokens than these are allowed, only those that open or close something are tried one by one.
_FEW = 96
# A closing is looked for up to this length; a pattern may go on without end.
_LONGEST = 1024
# Masks that are computed for one restriction at most; usual are up to a few hundred.
_MOST_MASKS = 4000


class _Masks:
    """Counts the masks that are computed for one restriction."""

    def __init__(self) -> None:
        self._left = _MOST_MASKS

    def count(self) -> None:
        """Counts one.

        Raises:
            GrammarError: There are too many; the matcher stands anywhere then.
        """
        self._left -= 1
        if self._left < 0:
            raise GrammarError(
                f"more than {_MOST_MASKS} masks are needed to find out which tokens leave room to close the text; "
                "raise max_tokens, make the schema simpler, or give it without closes=True"
            )


class Closer:
    """Finds closings of JSON texts, and restricts masks so that one always fits into the tokens that are left.

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
        # Within a string, tokens that go on alike from their quotation mark leave the text in the same state.
        self._tails = {
            index: data if data[: data.index(b'"')].endswith(b"\\") else data[data.index(b'"') :]
            for index, data in enumerate(union.tokens)
            if b'"' in data
        }
        self._quoted = np.array(list(self._tails), np.int64)

    def closing(self, matcher: LLMatcher, limit: int = _LONGEST, masks: _Masks | None = None) -> list[int] | None:
        """Returns union tokens that end the text from where it stands; few, not always the fewest.

        Args:
            matcher: Where the text stands; as before when this returns.
            limit: Most tokens to look for. Default 1024.
            masks: Counts the masks that are computed. Default None: they are not counted.

        Returns:
            The tokens without the end of text, empty where the text may end here; None if none were found.
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
        """Takes from a mask the tokens after which the text could no longer be closed.

        Strings and numbers may go on while their closing fits. Something new, such as a further item of a list, is
        opened only where its closing fits and 24 tokens of content beside it.

        Args:
            matcher: Where the text stands; as before when this returns.
            mask: What the grammar allows next, 0 or 1, shape ``[union]``.
            left: Tokens that may still be written, the next one included.
            near: Where this many tokens more than the closing's are left, the mask stays as it is.

        Returns:
            The mask; as it was also where no closing was found or none fits.

        Raises:
            GrammarError: Too many masks would have to be computed.
        """
        masks = _Masks()
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
                tried = np.flatnonzero(allowed if allowed.sum() <= _FEW else allowed & self._structural)
                for token in tried.tolist():
                    kept[token] = self._fits(matcher, token, len(path), left - 1, masks)
        kept[path[0]] = True
        return kept.astype(np.uint8)

    def _in_string(self, allowed: npt.NDArray[np.bool_]) -> bool:
        # As in `_shortest`: both brackets may follow only within a string, where neither closes anything.
        return bool(allowed[self._quote] and allowed[self._brackets].all())

    def _shortest(self, matcher: LLMatcher) -> list[int]:
        """The token that closes soonest, of those allowed."""
        # Requests are masked in several threads at once, so that no buffer is shared.
        words = np.zeros((self._count + 31) // 32, np.uint32)
        matcher.unsafe_compute_mask_ptr(words.ctypes.data, words.nbytes)

        def may(token: int) -> bool:
            return bool(int(words[token >> 5]) >> (token & 31) & 1)

        if may(self._quote) and all(map(may, self._brackets)):
            return [self._quote]
        for token in self._preferred:
            if may(token):
                return [token]
        bits = np.unpackbits(words.view(np.uint8), bitorder="little", count=self._end)
        return [int(token) for token in np.flatnonzero(bits)[:1]]

    def _fits(self, matcher: LLMatcher, token: int, before: int, left: int, masks: _Masks) -> bool:
        """Whether the text can be closed within the tokens left after one more."""
        if matcher.try_consume_tokens([token]) == 0:
            return False
        path = self.closing(matcher, left + 1, masks)
        matcher.rollback(1)
        if path is None:
            return False
        return len(path) + (_CONTENT if self._opening[token] and len(path) >= before else 0) <= left
