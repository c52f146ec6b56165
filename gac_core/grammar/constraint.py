"""A grammar on the union vocabulary: which tokens may come next, which must, and where a request stands.

The masks are llguidance's, over the union's bytes. Knows nothing of members, distributions or requests.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
import torch
from llguidance import LLMatcher
from torch import Tensor

from gac_core.errors import GrammarError, shorten
from gac_core.grammar.checker import reason_of
from gac_core.grammar.closing import Closer
from gac_core.threads import DaemonPool
from gac_core.tokenization.vocabulary import UnionVocabulary

Text = bytes | None
# Tokens that are committed in one step at most, however many are forced.
_FORCED = 256


@dataclass(frozen=True)
class Budget:
    """How a grammar's texts are closed within a number of tokens.

    Attributes:
        closer: Finds what closes.
        shortest: Tokens of the shortest text known.
        near: Where a text's closing and this many tokens still fit, nothing is restricted: more than any one token can
            add to the closing.
    """

    closer: Closer
    shortest: int
    near: int


class Constraint:
    """Where one request stands in its grammar.

    Args:
        matcher: At its beginning.
        union: The union vocabulary.
        goes_back: Whether tokens can be taken back, without which none are drafted.

    Attributes:
        limited: Whether the budget left fewer tokens to choose from than the grammar somewhere.
    """

    def __init__(self, matcher: LLMatcher, union: UnionVocabulary, goes_back: bool = True) -> None:
        self._goes_back = goes_back
        self._matcher = matcher
        self._union = union
        self.limited = False
        self._budget: Budget | None = None
        self._left = 0
        self._masks: dict[tuple[bytes, ...], Tensor] = {}
        self._restricted: set[tuple[bytes, ...]] = set()
        self._coming: Future[None] | None = None
        # What is forced from here on, last first.
        self._forced: list[int] = []
        self._failed: GrammarError | None = None
        self._words = np.zeros((len(union) + 31) // 32, np.int32)

    def limit(self, max_tokens: int, budget: Budget) -> None:
        """Holds the text to a number of tokens, within which it is closed wherever that is possible."""
        self._left, self._budget = max_tokens, budget

    def forced(self) -> list[Text]:
        """Returns tokens that must come now whatever the members say, 256 at most; None is the end of text."""
        self._wait()
        if not self._forced:
            if self._matcher.is_stopped():
                self._check()
                return [None]
            self._forced = self._matcher.compute_ff_tokens()[::-1]
        return [self._union.data(index) for index in self._forced[: -_FORCED - 1 : -1]]

    def accept(self, data: bytes) -> None:
        """Goes on by one token that was committed."""
        self._wait()
        self._masks.clear()
        self.limited = self.limited or () in self._restricted
        self._restricted = {key[1:] for key in self._restricted if key[:1] == (data,)}
        self._left -= 1
        index = self._union.ids[data]
        # What is forced remains so, and is not computed anew for each part of it.
        if self._forced and self._forced.pop() != index:
            self._forced = []
        if not self._matcher.consume_token(index):
            self._check()

    def reach(self, tokens: Sequence[bytes]) -> int:
        """Returns how many of some tokens may be drafted: those allowed, up to where others are forced."""
        self._wait()
        taken = 0
        for data in tokens if self._goes_back else ():
            index = self._union.ids.get(data)
            if index is None or self._matcher.try_consume_tokens([index]) == 0:
                break
            taken += 1
            if self._matcher.is_stopped() or self._matcher.compute_ff_tokens():
                break
        self._matcher.rollback(taken)
        return taken

    def prepare(self, tokens: Sequence[bytes], pool: DaemonPool) -> None:
        """Starts to compute the masks after each of some tokens, beginning with none, while members compute.

        Args:
            tokens: As `reach` allows them.
            pool: Where to compute.
        """
        self._wait()
        # Python takes no work for threads any more once its main thread has ended; `mask` then does it itself.
        with suppress(RuntimeError):
            self._coming = pool.submit(self._fill, list(tokens))

    def mask(self, tokens: Sequence[bytes]) -> Tensor:
        """Returns which tokens may follow after some that are not committed, bool, shape ``[union]``.

        Args:
            tokens: As `reach` allows them.

        Raises:
            GrammarError: The grammar became too complex for its limits.
        """
        self._wait()
        key = tuple(tokens)
        if key not in self._masks:
            self._fill(key)
        return self._masks[key]

    def _fill(self, tokens: Sequence[bytes]) -> None:
        taken = 0
        self._check()
        for stage in range(len(tokens) + 1):
            key = tuple(tokens[:stage])
            if stage:
                taken += self._matcher.try_consume_tokens([self._union.ids[tokens[stage - 1]]])
            if key not in self._masks:
                try:
                    self._masks[key] = self._next(key)
                except GrammarError as error:
                    # The matcher stands anywhere now.
                    self._failed = error
                    raise
        self._matcher.rollback(taken)
        self._check()

    def _next(self, key: tuple[bytes, ...]) -> Tensor:
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little", count=len(self._union))
        budget, left = self._budget, self._left - len(key)
        # Nothing is restricted before; a bound that depends on the text alone keeps drafts from changing it.
        if budget is not None and left <= budget.shortest + 3 * budget.near:
            closed = budget.closer.restrict(self._matcher, bits, left, budget.near)
            if closed is not bits:
                if (closed != bits).any():
                    self._restricted.add(key)
                bits = closed
        return torch.from_numpy(bits).view(torch.bool)

    def _wait(self) -> None:
        if self._coming is not None:
            coming, self._coming = self._coming, None
            # An error leaves the matcher in a state in which whoever asks for the mask meets it again.
            coming.exception()

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._matcher.is_error():
            raise GrammarError(f"the grammar cannot go on: {shorten(reason_of(self._matcher.get_error()))}")
