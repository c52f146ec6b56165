"""Grammars compiled for the union vocabulary by llguidance, each once, within bounds.

Knows nothing of members, distributions or requests.
"""

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

# Compiled grammars that are kept.
_KEPT = 64
# Seconds in which the tool is looked for whose schema is at fault.
_LOOK = 2.0
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


@dataclass(frozen=True)
class _Compiled:
    """A grammar that was compiled, or why it was not.

    Attributes:
        matcher: At the beginning; copied, never moved.
        budget: How the grammar is closed within a budget, if it is.
        goes_back: Whether tokens can be taken back.
        error: Why it cannot be used.
        lasting: Whether another try would show the same.
    """

    matcher: LLMatcher | None = None
    budget: Budget | None = None
    goes_back: bool = True
    error: str | None = None
    lasting: bool = True


class Compiler:
    """Compiles grammars for one union; may be used from many threads.

    Every grammar is tried in a child process first (`checker`). Callers who ask for the same grammar at
    the same time wait for the same compilation; others do not wait for it.

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
        # Threads of their own, which end at once, since a caller's stack may be small.
        self._pool = DaemonPool("gac-grammar", os.cpu_count() or 4, idle=0, stack_size=STACK_SIZE, grace=1.0)

    def start(self, grammar: Grammar, max_tokens: int | None = None) -> Constraint:
        """Returns the beginning of a grammar.

        Args:
            grammar: The grammar.
            max_tokens: Tokens that may be written, within which a grammar that closes ends its text. Default: no limit.

        Raises:
            GrammarError: It cannot be compiled within bounds, or asks for what cannot be enforced.
        """
        compiled = self._compiled(grammar)
        if compiled.matcher is None:
            raise GrammarError(compiled.error or "")
        started = Constraint(compiled.matcher.deep_copy(), self._union, compiled.goes_back)
        if compiled.budget is not None and max_tokens is not None:
            started.limit(max_tokens, compiled.budget)
        return started

    def _compiled(self, grammar: Grammar) -> _Compiled:
        if self._process != os.getpid():
            # Nobody goes on with what was being compiled when this process was forked.
            self._reset()
        with self._lock:
            coming = self._known.get(grammar)
            if coming is None:
                coming = self._known[grammar] = self._pool.submit(self._compile, grammar)
                if len(self._known) > _KEPT:
                    self._known.popitem(last=False)
            self._known.move_to_end(grammar)
        compiled = coming.result()
        if not compiled.lasting:
            with self._lock:
                if self._known.get(grammar) is coming:
                    del self._known[grammar]
        return compiled

    def _compile(self, grammar: Grammar) -> _Compiled:
        try:
            verdict = checker.check(grammar.source)
            if verdict.error is None and verdict.refusal is None:
                matcher = LLMatcher(self._spelled(), grammar.source, log_level=0, limits=LLParserLimits(**LIMITS))
                if not matcher.is_error():
                    goes_back = not _COUNTED.search(grammar.source)
                    return _Compiled(matcher, self._budget(grammar, matcher), goes_back)
                verdict = Verdict(error=matcher.get_error())
            return _Compiled(error=_message(grammar, verdict), lasting=verdict.lasting)
        except GrammarError as error:
            return _Compiled(error=str(error))
        except BaseException as error:
            # A panic of llguidance is a BaseException.
            return _Compiled(
                error=f"{_culprit(grammar)} cannot be compiled ({type(error).__name__}: {shorten(str(error))})",
                lasting=False,
            )

    def _spelled(self) -> LLTokenizer:
        with self._building:
            if self._tokenizer is None:
                wrapper = TokenizerWrapper(_Spelling(self._union))
                self._tokenizer = LLTokenizer(wrapper, slices=LLTokenizer.json_slices())
            return self._tokenizer

    def _budget(self, grammar: Grammar, matcher: LLMatcher) -> Budget | None:
        """How a grammar that closes is held to a budget."""
        if not grammar.closes:
            return None
        with self._building:
            if self._closer is None:
                self._closer = Closer(self._union)
        shortest = self._closer.closing(matcher)
        return None if shortest is None else Budget(self._closer, len(shortest), _NEAR + len(grammar.source) // 8)


def _message(grammar: Grammar, verdict: Verdict) -> str:
    """What a caller is told of a grammar that is not compiled."""
    if verdict.error is None:
        return f"{_culprit(grammar)} is not compiled: {verdict.refusal}"
    reason = reason_of(verdict.error)
    if grammar.kind != "lark":
        # Numbered lines quote the grammar that was made of what the caller gave.
        reason = " ".join(_QUOTED.split(reason)[0].split())
    reason = shorten(reason)
    if "Unimplemented keys" in reason:
        reason += "; no grammar can enforce that: say it otherwise (a list in place of a set), or check the answer"
    return f"{_culprit(grammar)} cannot be compiled: {reason}"


def _culprit(grammar: Grammar) -> str:
    """What to name in an error: the tool whose schema cannot be compiled, if it is found in time, else the grammar."""
    until = time.monotonic() + _LOOK
    for name, schema in grammar.tools:
        verdict = Verdict() if time.monotonic() > until else checker.check(Grammar.json_schema(schema).source)
        if verdict != Verdict():
            return f"the schema of tool {quote(name)}'s arguments"
    return f"the grammar ({shorten(grammar.kind, 40)})"
