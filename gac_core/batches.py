"""The methods of `Ensemble` that answer several prompts at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from gac_core.config import EnsembleConfig
from gac_core.engine.answer_stream import acollect_batch
from gac_core.engine.calls import answers, new_calls
from gac_core.engine.delivery import collect_batch
from gac_core.output import RequestOutput
from gac_core.sampling import SamplingParams
from gac_core.voices import AnyPrompt

if TYPE_CHECKING:
    from gac_core.engine.input_processor import InputProcessor
    from gac_core.engine.session import Session


class Batches:
    """The methods of `Ensemble` that answer several prompts at once."""

    config: EnsembleConfig
    _session: Session
    _input_processor: InputProcessor

    def generate_batch(
        self,
        prompts: Sequence[AnyPrompt],
        params: SamplingParams | None = None,
        *,
        request_ids: Sequence[str | None] | None = None,
        **overrides: Any,
    ) -> list[RequestOutput]:
        """Answers several prompts at once; arguments and errors as in `generate`. An error of one ends them all."""
        tasks = answers(self._input_processor, prompts)
        return collect_batch(self._session, new_calls(self._session, tasks, params, overrides, request_ids))

    async def agenerate_batch(
        self,
        prompts: Sequence[AnyPrompt],
        params: SamplingParams | None = None,
        *,
        request_ids: Sequence[str | None] | None = None,
        **overrides: Any,
    ) -> list[RequestOutput]:
        """`generate_batch` for event loops; cancelling it frees the engine."""
        tasks = answers(self._input_processor, prompts)
        calls = new_calls(self._session, tasks, params, overrides, request_ids)
        return await acollect_batch(self._session, calls, self.config.max_batch_size)
