"""The methods of `Ensemble` that give several answers to one prompt, or queue a request before its answer is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from gac_core.engine.answer_stream import AnswerStream, acollect_choices, submit_answers
from gac_core.engine.calls import Call, new_choices_call
from gac_core.engine.delivery import collect_choices
from gac_core.output import RequestOutput
from gac_core.sampling import SamplingParams
from gac_core.voices import AnyPrompt, Documents, Voice, as_prompt

if TYPE_CHECKING:
    from gac_core.engine.input_processor import InputProcessor
    from gac_core.engine.session import Session


class Choices:
    """The methods of `Ensemble` that give ``n`` answers to one prompt.

    Each of them is the answer that `Ensemble.generate` gives with its seed (`RequestOutput.seed`). Members read the
    prompt for the first answer; the others find it in the KV caches. With ``weights="perplexity"``, the prompt is
    measured for each of them.
    """

    _session: Session
    _input_processor: InputProcessor

    def _choices_call(
        self, prompt: AnyPrompt, params: SamplingParams | None, overrides: Mapping[str, Any], request_id: str | None
    ) -> Call:
        task = partial(self._input_processor.choices, prompt)
        return new_choices_call(self._session, task, params, overrides, request_id)

    def generate_choices(
        self,
        prompt: AnyPrompt | None = None,
        params: SamplingParams | None = None,
        *,
        voices: Sequence[Voice] | None = None,
        documents: Documents | None = None,
        request_id: str | None = None,
        **overrides: Any,
    ) -> list[RequestOutput]:
        """Returns `SamplingParams.n` answers to one prompt, in order; an error of one ends them all.

        The first answer is that of ``n=1``. Greedy answers are all equal. At most as many answers as the ensemble's
        queue has places run or wait at once.

        Args:
            prompt: As in `generate`.
            params: As in `generate`; ``timeout`` holds for all answers together.
            voices: As in `generate`.
            documents: As in `generate`.
            request_id: As in `generate`; the same for all answers.
            **overrides: As in `generate`.

        Raises:
            RequestError: The prompt or an argument is wrong.
            MemberError: A member failed.
            QueueFullError: There is no place in the queue for the first answer.
            RequestTimeoutError: It took longer than ``timeout``.
            EngineClosedError: The ensemble is closed.
        """
        asked = as_prompt(prompt, voices, documents)
        return collect_choices(self._session, self._choices_call(asked, params, overrides, request_id), self)

    async def agenerate_choices(
        self,
        prompt: AnyPrompt | None = None,
        params: SamplingParams | None = None,
        *,
        voices: Sequence[Voice] | None = None,
        documents: Documents | None = None,
        request_id: str | None = None,
        **overrides: Any,
    ) -> list[RequestOutput]:
        """`generate_choices` for event loops; cancelling it frees the engine."""
        asked = as_prompt(prompt, voices, documents)
        return await acollect_choices(self._session, self._choices_call(asked, params, overrides, request_id), self)

    async def asubmit(
        self,
        prompt: AnyPrompt | None = None,
        params: SamplingParams | None = None,
        *,
        voices: Sequence[Voice] | None = None,
        documents: Documents | None = None,
        request_id: str | None = None,
        **overrides: Any,
    ) -> AnswerStream:
        """Queues a request and returns the stream of its ``n`` answers; arguments as in `generate_choices`.

        All that can be refused before a forward is raised here, so that a stream can be begun with a good status.

        Raises:
            RequestError: The prompt or an argument is wrong.
            QueueFullError: There is no place in the queue.
            EngineStuckError: A step has been running for too long.
            EngineClosedError: The ensemble is closed.
            RequestTimeoutError: Making the request took longer than ``timeout``.
        """
        asked = as_prompt(prompt, voices, documents)
        return await submit_answers(self._session, self._choices_call(asked, params, overrides, request_id), self)
