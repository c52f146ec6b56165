"""The state of one request in its grammar: allowed and forced tokens of the union vocabulary.

Masks are computed by llguidance over the bytes of the union's tokens.
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
# Most forced tokens that are committed in one step.
_MAX_FORCED = 256


@dataclass(frozen=True)
class Budget:
    """How texts of a grammar are closed within a number of tokens.

    Attributes:
        closer: Finds closings.
        shortest: Tokens of the shortest known text.
        near: Masks are not restricted while the closing and this many further tokens fit: more than one token can add
            to the closing.
    """

    closer: Closer
    shortest: int
    near: int


class Constraint:
    """The state of one request in its grammar.

    Args:
        matcher: A matcher in its initial state, owned by this object.
        union: The union vocabulary.
        can_rollback: Whether tokens can be rolled back; if not, none are drafted. Default True.

    Attributes:
        limited: Whether the token budget removed tokens that the grammar allowed, at some committed position.
    """

    def __init__(self, matcher: LLMatcher, union: UnionVocabulary, can_rollback: bool = True) -> None:
        self._can_rollback = can_rollback
        self._matcher = matcher
        self._union = union
        self.limited = False
        self._budget: Budget | None = None
        self._left = 0
        self._masks: dict[tuple[bytes, ...], Tensor] = {}
        self._restricted: set[tuple[bytes, ...]] = set()
        self._pending: Future[None] | None = None
        # Forced tokens from here on, in reverse order.
        self._forced: list[int] = []
        self._failed: GrammarError | None = None
        self._words = np.zeros((len(union) + 31) // 32, np.int32)

    def limit(self, max_tokens: int, budget: Budget) -> None:
        """Sets the token budget, within which the text is closed where that is possible."""
        self._left, self._budget = max_tokens, budget

    def forced(self) -> list[Text]:
        """Returns the next tokens where the grammar leaves no choice, at most 256; None stands for the end of text."""
        self._wait()
        if not self._forced:
            if self._matcher.is_stopped():
                self._check()
                return [None]
            self._forced = self._matcher.compute_ff_tokens()[::-1]
        return [self._union.data(index) for index in self._forced[: -_MAX_FORCED - 1 : -1]]

    def accept(self, data: bytes) -> None:
        """Advances by one committed token.

        Raises:
            GrammarError: The grammar became too complex for its limits.
        """
        self._wait()
        self._masks.clear()
        self.limited = self.limited or () in self._restricted
        self._restricted = {key[1:] for key in self._restricted if key[:1] == (data,)}
        self._left -= 1
        index = self._union.ids[data]
        # The rest of the forced tokens stays forced and is not computed again.
        if self._forced and self._forced.pop() != index:
            self._forced = []
        if not self._matcher.consume_token(index):
            self._check()

    def num_draftable(self, tokens: Sequence[bytes]) -> int:
        """Returns how many of the tokens may be drafted: those allowed, up to a position with forced tokens."""
        self._wait()
        taken = 0
        for data in tokens if self._can_rollback else ():
            index = self._union.ids.get(data)
            if index is None or self._matcher.try_consume_tokens([index]) == 0:
                break
            taken += 1
            if self._matcher.is_stopped() or self._matcher.compute_ff_tokens():
                break
        self._matcher.rollback(taken)
        return taken

    def prepare(self, tokens: Sequence[bytes], pool: DaemonPool) -> None:
        """Starts to compute the masks after each prefix of some tokens, during the forward of the models.

        Args:
            tokens: Draft tokens, as many as `num_draftable` returns at most.
            pool: The threads that compute.
        """
        self._wait()
        # No threads start once the main thread has ended; `mask` then computes the masks itself.
        with suppress(RuntimeError):
            self._pending = pool.submit(self._fill, list(tokens))

    def mask(self, tokens: Sequence[bytes]) -> Tensor:
        """Returns which tokens may follow after draft tokens, bool, shape ``[union]``.

        Args:
            tokens: Draft tokens, as many as `num_draftable` returns at most.

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
                    # The state of the matcher is undefined now.
                    self._failed = error
                    raise
        self._matcher.rollback(taken)
        self._check()

    def _next(self, key: tuple[bytes, ...]) -> Tensor:
        self._matcher.unsafe_compute_mask_ptr(self._words.ctypes.data, self._words.nbytes)
        bits = np.unpackbits(self._words.view(np.uint8), bitorder="little", count=len(self._union))
        budget, left = self._budget, self._left - len(key)
        # The threshold depends on the text alone, so that drafts do not change the result.
        if budget is not None and left <= budget.shortest + 3 * budget.near:
            closed = budget.closer.restrict(self._matcher, bits, left, budget.near)
            if closed is not bits:
                if (closed != bits).any():
                    self._restricted.add(key)
                bits = closed
        return torch.from_numpy(bits).view(torch.bool)

    def _wait(self) -> None:
        if self._pending is not None:
            pending, self._pending = self._pending, None
            # An error is kept in the state of this object and raised again by `mask`.
            pending.exception()

    def _check(self) -> None:
        if self._failed is not None:
            raise self._failed
        if self._matcher.is_error():
            raise GrammarError(f"the grammar failed during generation: {shorten(reason_of(self._matcher.get_error()))}")
