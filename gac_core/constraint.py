"""Grammars run on the union vocabulary: which tokens may come next, which must, and where a request stands.

The masks are llguidance's, over the union's bytes. Knows nothing of members, distributions or requests.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from llguidance import LLMatcher, LLTokenizer, TokenizerWrapper
from torch import Tensor

from gac_core.closing import Closer
from gac_core.errors import GrammarError
from gac_core.grammar import Grammar
from gac_core.vocabulary import UnionVocabulary

Text = bytes | None
# Lexemes with these attributes cannot be taken back, so that nothing can be drafted on trial.
_COUNTED = re.compile(r"\b(max_tokens|stop)\s*=")
# Of `Budget.near`: what is kept beside what the grammar's size suggests.
_NEAR = 48
_QUOTED = re.compile(r"^\s*\d+ \|", re.MULTILINE)


class _Spelling:
    """The union as llguidance wants a tokenizer to look."""

    bos_token_id = None

    def __init__(self, union: UnionVocabulary) -> None:
        self._ids = union.ids
        self._longest = max(len(token) for token in union.tokens)
        self.eos_token_id = union.end_id
        self.special_token_ids = [union.end_id]
        # 0xFF marks what is no text. A token of that byte, if there is one, is then none either: no UTF-8 holds it.
        self.tokens = [*union.tokens, b"\xff<end>"]

    def __call__(self, text: bytes | str) -> list[int]:
        """The longest tokens from the left; stops where the union cannot spell on."""
        data = text.encode() if isinstance(text, str) else text
        ids: list[int] = []
        start = 0
        while start < len(data):
            for end in range(min(len(data), start + self._longest), start, -1):
                index = self._ids.get(data[start:end])
                if index is not None:
                    ids.append(index)
                    start = end
                    break
            else:
                break
        return ids


def _culprit(grammar: Grammar) -> str:
    """What to name in an error: the tool whose schema cannot be compiled, if there is one, else the grammar."""
    for name, schema in grammar.tools:
        if LLMatcher.validate_grammar(Grammar.json_schema(schema).source):
            return f"the schema of tool {name!r}'s arguments"
    return f"the grammar ({grammar.kind})"


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


class Compiler:
    """Compiles grammars for one union; may be used from many threads.

    Args:
        union: The union vocabulary.
    """

    def __init__(self, union: UnionVocabulary) -> None:
        self._union = union
        self._lock = threading.Lock()
        self._compiled = lru_cache(maxsize=64)(self._compile)
        self._tokenizer: LLTokenizer | None = None
        self._closer: Closer | None = None

    def start(self, grammar: Grammar, max_tokens: int | None = None) -> Constraint:
        """Returns the beginning of a grammar.

        Args:
            grammar: The grammar.
            max_tokens: Tokens that may be written, within which a grammar that closes ends its text. Default: no limit.

        Raises:
            GrammarError: It cannot be compiled, or asks for what cannot be enforced.
        """
        with self._lock:
            goes_back = not _COUNTED.search(grammar.source)
            matcher, budget = self._compiled(grammar)
            started = Constraint(matcher.deep_copy(), self._union, goes_back)
            if budget is not None and max_tokens is not None:
                started.limit(max_tokens, budget)
            return started

    def _budget(self, grammar: Grammar, matcher: LLMatcher) -> Budget | None:
        """How a grammar that closes is held to a budget."""
        if not grammar.closes:
            return None
        if self._closer is None:
            self._closer = Closer(self._union)
        shortest = self._closer.closing(matcher)
        return None if shortest is None else Budget(self._closer, len(shortest), _NEAR + len(grammar.source) // 8)

    def _compile(self, grammar: Grammar) -> tuple[LLMatcher, Budget | None]:
        if self._tokenizer is None:
            wrapper = TokenizerWrapper(_Spelling(self._union))
            self._tokenizer = LLTokenizer(wrapper, slices=LLTokenizer.json_slices())
        matcher = LLMatcher(self._tokenizer, grammar.source, log_level=0)
        if matcher.is_error():
            reason = matcher.get_error().partition("\n<state>")[0].strip()
            if grammar.kind != "lark":
                # Numbered lines quote the grammar that was made of what the caller gave.
                reason = " ".join(_QUOTED.split(reason)[0].split())
            if "Unimplemented keys" in reason:
                reason += (
                    "; no grammar can enforce that: say it otherwise (a list in place of a set), or check the answer"
                )
            raise GrammarError(f"{_culprit(grammar)} cannot be compiled: {reason}")
        return matcher, self._budget(grammar, matcher)


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
        self._words = np.zeros((len(union) + 31) // 32, np.int32)

    def limit(self, max_tokens: int, budget: Budget) -> None:
        """Holds the text to a number of tokens, within which it is closed wherever that is possible."""
        self._left, self._budget = max_tokens, budget

    def forced(self) -> list[Text]:
        """Returns the tokens that must come now whatever the members say; None is the end of text."""
        self._wait()
        if self._matcher.is_stopped():
            self._check()
            return [None]
        return [self._union.data(index) for index in self._matcher.compute_ff_tokens()]

    def accept(self, data: bytes) -> None:
        """Goes on by one token that was committed."""
        self._wait()
        self._masks.clear()
        self.limited = self.limited or () in self._restricted
        self._restricted = {key[1:] for key in self._restricted if key[:1] == (data,)}
        self._left -= 1
        if not self._matcher.consume_token(self._union.ids[data]):
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

    def prepare(self, tokens: Sequence[bytes], pool: ThreadPoolExecutor) -> None:
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
        for stage in range(len(tokens) + 1):
            key = tuple(tokens[:stage])
            if stage:
                taken += self._matcher.try_consume_tokens([self._union.ids[tokens[stage - 1]]])
            if key not in self._masks:
                self._masks[key] = self._next(key)
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
        if self._matcher.is_error():
            reason = self._matcher.get_error().partition("\n<state>")[0].strip()
            raise GrammarError(f"the grammar cannot go on: {reason}")
