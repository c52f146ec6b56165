"""`Score`: the log-probability of a given text, and the methods of `Ensemble` that compute it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from gac_core.chat.conversation import Prompt
from gac_core.config import EnsembleConfig
from gac_core.engine.answer_stream import acollect_batch, astream_events
from gac_core.engine.calls import new_call, new_calls, scores
from gac_core.engine.continuation_text import Continuation
from gac_core.engine.delivery import collect_batch, stream_events
from gac_core.output import RequestOutput, RequestStats, afold, fold
from gac_core.sampling import SamplingParams
from gac_core.token_stats import TokenLogprob, TokenStats

if TYPE_CHECKING:
    from gac_core.engine.input_processor import InputProcessor
    from gac_core.engine.session import Session


@dataclass(frozen=True)
class Score:
    """The log-probability of a continuation.

    Attributes:
        logprob: Natural logarithm of its probability: the sum over ``tokens``. Minus infinity where a token has no
            probability in float32.
        greedy: Whether no token was more probable than the given one at any position.
        tokens: The union tokens that the continuation was cut into, with their log-probabilities.
        token_stats: One entry per token; None unless requested.
        stats: Cost and decisions.
    """

    logprob: float
    greedy: bool
    tokens: tuple[TokenLogprob, ...]
    token_stats: tuple[TokenStats, ...] | None
    stats: RequestStats

    @classmethod
    def of(cls, output: RequestOutput) -> Score:
        """Returns the score that a finished request amounts to, which has log-probabilities."""
        tokens = output.logprobs or ()
        return cls(
            logprob=math.fsum(token.logprob for token in tokens),
            greedy=all(token.rank == 1 for token in tokens),
            tokens=tokens,
            token_stats=output.token_stats,
            stats=output.stats,
        )


class Scoring:
    """The methods of `Ensemble` that score given texts."""

    config: EnsembleConfig
    _session: Session
    _input_processor: InputProcessor

    def cut(self, continuation: Continuation, params: SamplingParams | None = None) -> tuple[bytes, ...]:
        """Returns the union tokens that `score` cuts a continuation into: those of the gate's tokenizer.

        Raises:
            RequestError: The continuation or the gate is wrong.
            UnwritableTextError: The gate's vocabulary cannot represent the continuation.
        """
        self._session.check_process()
        return self._input_processor.cut(continuation, params)

    def score(
        self,
        prompt: Prompt,
        continuation: Continuation,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **overrides: Any,
    ) -> Score:
        """Returns the log-probability of a continuation of a prompt.

        The continuation is cut into union tokens as the gate's tokenizer cuts it in the middle of a text, and each
        token is committed to every member as in `generate`. Its log-probability is that in the combined distribution,
        or in the gate's where a threshold lets the gate decide alone. Other ways to cut the same text are not added.
        The end of text is not scored. ``docs/scoring.md`` defines all of this.

        Weights, gate, threshold, rules and ``repetition_penalty`` apply; ``max_tokens``, ``stop``, the seed,
        temperature and truncation do not.

        Args:
            prompt: As in `generate`; an empty string scores the beginning of a text (after each member's BOS token, or
                its EOS token if it has none).
            continuation: The text; or union tokens as bytes, such as `RequestOutput.tokens`, which are not cut again.
            params: As in `generate`, without a grammar.
            request_id: As in `generate`.
            **overrides: As in `generate`.

        Raises:
            RequestError: The prompt, the continuation or an argument is wrong, or both together are too long.
            UnwritableTextError: The gate's vocabulary cannot represent the continuation.
            MemberError: A member failed.
            RequestTimeoutError: It took longer than ``timeout``.
            EngineClosedError: The ensemble is closed.
        """
        [task] = scores(self._input_processor, [(prompt, continuation)])
        call = new_call(self._session, task, params, overrides, request_id)
        return Score.of(fold(stream_events(self._session, call, self)))

    def score_batch(
        self,
        pairs: Sequence[tuple[Prompt, Continuation]],
        params: SamplingParams | None = None,
        *,
        request_ids: Sequence[str | None] | None = None,
        **overrides: Any,
    ) -> list[Score]:
        """Scores several pairs of a prompt and its continuation at once; else as `score`. An error of one ends all."""
        tasks = scores(self._input_processor, pairs)
        calls = new_calls(self._session, tasks, params, overrides, request_ids)
        return [Score.of(output) for output in collect_batch(self._session, calls)]

    async def ascore(
        self,
        prompt: Prompt,
        continuation: Continuation,
        params: SamplingParams | None = None,
        *,
        request_id: str | None = None,
        **overrides: Any,
    ) -> Score:
        """`score` for event loops; cancelling it frees the engine."""
        [task] = scores(self._input_processor, [(prompt, continuation)])
        call = new_call(self._session, task, params, overrides, request_id)
        return Score.of(await afold(astream_events(self._session, call)))

    async def ascore_batch(
        self,
        pairs: Sequence[tuple[Prompt, Continuation]],
        params: SamplingParams | None = None,
        *,
        request_ids: Sequence[str | None] | None = None,
        **overrides: Any,
    ) -> list[Score]:
        """`score_batch` for event loops; cancelling it frees the engine."""
        tasks = scores(self._input_processor, pairs)
        calls = new_calls(self._session, tasks, params, overrides, request_ids)
        outputs = await acollect_batch(self._session, calls, self.config.max_batch_size)
        return [Score.of(output) for output in outputs]
