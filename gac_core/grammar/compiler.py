"""Compilation of grammars for the union vocabulary with llguidance: each grammar once, and within limits."""

from __future__ import annotations

import os
import re
import threading
import time
from collections import OrderedDict
from concurrent.futures import Future
from dataclasses import dataclass

from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from gac_core.errors import GrammarError, quote, shorten
from gac_core.grammar.checker import LIMITS, STACK_SIZE, Verdict, checker, reason_of
from gac_core.grammar.closing import Closer
from gac_core.grammar.constraint import Budget, Constraint
from gac_core.grammar.grammar import Grammar
from gac_core.threads import DaemonPool
from gac_core.tokenization.vocabulary import UnionVocabulary

# Compiled grammars that are kept, least recently used first.
_MAX_CACHED = 64
# Seconds to find the tool whose schema cannot be compiled.
_MAX_SEARCH = 2.0
# Lexemes with these attributes cannot be rolled back, which drafts need.
_NO_ROLLBACK = re.compile(r"\b(max_tokens|stop)\s*=")
# Tokens of `Budget.near`, in addition to a share of the grammar's size.
_NEAR = 48
# A numbered line in an error of llguidance, which quotes the generated grammar.
_QUOTED = re.compile(r"^\s*\d+ \|", re.MULTILINE)


class _UnionTokenizer:
    """The union vocabulary with the interface of a tokenizer that llguidance expects."""

    bos_token_id = None

    def __init__(self, union: UnionVocabulary) -> None:
        self._ids = union.ids
        self._longest = max(len(token) for token in union.tokens)
        self.eos_token_id = union.end_id
        self.special_token_ids = [union.end_id]
        # A leading 0xFF marks special tokens. No UTF-8 contains that byte, so that no token of text is lost.
        self.tokens = [*union.tokens, b"\xff<end>"]

    def __call__(self, text: bytes | str) -> list[int]:
        """Returns the longest tokens from the left, up to the first bytes that no token spells."""
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


@dataclass(frozen=True)
class _Compiled:
    """A compiled grammar, or the reason why it could not be compiled.

    Attributes:
        matcher: The matcher in its initial state, which is copied for each request; None on an error.
        budget: How texts are closed within a token budget; None if they are not.
        can_rollback: Whether tokens can be rolled back.
        error: The error message, or None.
        lasting: Whether another attempt would have the same result.
    """

    matcher: LLMatcher | None = None
    budget: Budget | None = None
    can_rollback: bool = True
    error: str | None = None
    lasting: bool = True


class Compiler:
    """Compiles grammars for one union vocabulary. Thread-safe.

    Every grammar is checked in a child process first (`checker`). Callers with the same grammar at the same time share
    one compilation; callers with other grammars do not wait for it.

    Args:
        union: The union vocabulary.
    """

    def __init__(self, union: UnionVocabulary) -> None:
        self._union = union
        self._reset()
        self._tokenizer: LLTokenizer | None = None
        self._closer: Closer | None = None

    def _reset(self) -> None:
        self._process = os.getpid()
        self._lock = threading.Lock()
        self._building = threading.Lock()
        self._known: OrderedDict[Grammar, Future[_Compiled]] = OrderedDict()
        # A thread per compilation, because the stack of a caller may be small. With idle=0 a thread ends with its job,
        # so that the pool need not be closed.
        self._pool = DaemonPool("gac-grammar", os.cpu_count() or 4, idle=0, stack_size=STACK_SIZE, grace=1.0)

    def start(self, grammar: Grammar, max_tokens: int | None = None) -> Constraint:
        """Returns the constraint of a new request.

        Args:
            grammar: The grammar.
            max_tokens: Token budget of the request, within which a grammar with ``closes`` ends its text. Default None:
                no limit.

        Raises:
            GrammarError: The grammar cannot be compiled within the limits, or cannot be enforced.
        """
        compiled = self._compiled(grammar)
        if compiled.matcher is None:
            raise GrammarError(compiled.error or "")
        started = Constraint(compiled.matcher.deep_copy(), self._union, compiled.can_rollback)
        if compiled.budget is not None and max_tokens is not None:
            started.limit(max_tokens, compiled.budget)
        return started

    def _compiled(self, grammar: Grammar) -> _Compiled:
        if self._process != os.getpid():
            # In a forked process the threads of running compilations do not exist.
            self._reset()
        with self._lock:
            future = self._known.get(grammar)
            if future is None:
                future = self._known[grammar] = self._pool.submit(self._compile, grammar)
                if len(self._known) > _MAX_CACHED:
                    self._known.popitem(last=False)
            self._known.move_to_end(grammar)
        compiled = future.result()
        if not compiled.lasting:
            with self._lock:
                if self._known.get(grammar) is future:
                    del self._known[grammar]
        return compiled

    def _compile(self, grammar: Grammar) -> _Compiled:
        try:
            verdict = checker.check(grammar.source)
            if verdict.error is None and verdict.refusal is None:
                matcher = LLMatcher(
                    self._union_tokenizer(), grammar.source, log_level=0, limits=LLParserLimits(**LIMITS)
                )
                if not matcher.is_error():
                    can_rollback = not _NO_ROLLBACK.search(grammar.source)
                    return _Compiled(matcher, self._budget(grammar, matcher), can_rollback)
                verdict = Verdict(error=matcher.get_error())
            return _Compiled(error=_message(grammar, verdict), lasting=verdict.lasting)
        except GrammarError as error:
            return _Compiled(error=str(error))
        except BaseException as error:
            # Panics of llguidance are BaseExceptions.
            return _Compiled(
                error=f"{_culprit(grammar)} cannot be compiled ({type(error).__name__}: {shorten(str(error))})",
                lasting=False,
            )

    def _union_tokenizer(self) -> LLTokenizer:
        with self._building:
            if self._tokenizer is None:
                wrapper = TokenizerWrapper(_UnionTokenizer(self._union))
                self._tokenizer = LLTokenizer(wrapper, slices=LLTokenizer.json_slices())
            return self._tokenizer

    def _budget(self, grammar: Grammar, matcher: LLMatcher) -> Budget | None:
        """How texts of a grammar with ``closes`` are closed within a budget; None for other grammars."""
        if not grammar.closes:
            return None
        with self._building:
            if self._closer is None:
                self._closer = Closer(self._union)
        shortest = self._closer.closing(matcher)
        return None if shortest is None else Budget(self._closer, len(shortest), _NEAR + len(grammar.source) // 8)


def _message(grammar: Grammar, verdict: Verdict) -> str:
    """The error message of a grammar that is not compiled."""
    if verdict.error is None:
        return f"{_culprit(grammar)} is not compiled: {verdict.refusal}"
    reason = reason_of(verdict.error)
    if grammar.kind != "lark":
        # Numbered lines quote the generated grammar, which the caller has not written.
        reason = " ".join(_QUOTED.split(reason)[0].split())
    reason = shorten(reason)
    if "Unimplemented keys" in reason:
        reason += "; no grammar can enforce these: use other keywords (a list in place of a set), or check the answer"
    return f"{_culprit(grammar)} cannot be compiled: {reason}"


def _culprit(grammar: Grammar) -> str:
    """The subject of an error: the tool whose schema cannot be compiled, if it is found in time, else the grammar."""
    until = time.monotonic() + _MAX_SEARCH
    for name, schema in grammar.tools:
        verdict = Verdict() if time.monotonic() > until else checker.check(Grammar.json_schema(schema).source)
        if verdict != Verdict():
            return f"the schema of tool {quote(name)}'s arguments"
    return f"the grammar ({shorten(grammar.kind, 40)})"
