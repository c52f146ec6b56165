"""Prompts that the text of a completion repeats, with the log-probabilities of their tokens."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

from gac_core.errors import GaCError, UnwritableTextError
from gac_core.output import FinishReason, RequestOutput, Usage
from gac_core.scoring import Score
from gac_core.server.errors import ApiError
from gac_core.server.generation.translate import Generation
from gac_core.token_stats import TokenLogprob


@dataclass(frozen=True)
class Echo:
    """What the text of an answer begins with.

    Attributes:
        text: The prompt; empty where it is not repeated.
        score: The log-probabilities of its tokens; None where they were not requested.
    """

    text: str = ""
    score: Score | None = None

    @property
    def logprobs(self) -> Sequence[TokenLogprob] | None:
        """One entry per token of the prompt."""
        return None if self.score is None else self.score.tokens


async def echoes_of(generation: Generation, request_id: str) -> list[Echo]:
    """Returns the echo of each prompt; prompts are scored as continuations of the beginning of a text.

    Raises:
        ApiError: The engine refuses a prompt, or fails.
    """
    if not generation.echo:
        return [Echo() for _ in generation.prompts]
    prompts = [str(prompt) for prompt in generation.prompts]
    if generation.params.logprobs is None:
        return [Echo(prompt) for prompt in prompts]
    # What changes the distributions of the answer's tokens does not change those of the prompt's.
    params = replace(generation.params, n=1, grammar=None, presence_penalty=0.0, frequency_penalty=0.0, logit_bias=None)
    score = generation.served.ensemble.ascore
    scores = [asyncio.ensure_future(score("", prompt, params, request_id=request_id)) for prompt in prompts]
    try:
        return [Echo(*each) for each in zip(prompts, await asyncio.gather(*scores), strict=True)]
    except UnwritableTextError as error:
        raise ApiError(400, "invalid_value", str(error), param="prompt") from error
    except GaCError as error:
        raise generation.as_api_error(error) from error
    finally:
        for each in scores:
            each.cancel()
        await asyncio.gather(*scores, return_exceptions=True)


def scored_output(echo: Echo, request_id: str) -> RequestOutput:
    """Returns an answer of no tokens, whose prompt was scored."""
    assert echo.score is not None
    return RequestOutput(
        request_id=request_id,
        text="",
        tokens=(),
        finish_reason=FinishReason.LENGTH,
        stopped_by=None,
        usage=Usage(len(echo.score.tokens), 0),
        stats=echo.score.stats,
        logprobs=(),
        seed=None,
        token_stats=echo.score.token_stats,
    )
