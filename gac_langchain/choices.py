"""Several answers to one prompt (``n``): batches of them, their token counts, and what cannot be streamed."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from gac_core import AnyPrompt, Ensemble, RequestError, RequestOutput, SamplingParams, token_counts


def check_one_answer(params: SamplingParams) -> None:
    """Checks that a stream has one answer.

    Raises:
        RequestError: ``n`` is above 1.
    """
    if params.n != 1:
        raise RequestError(
            f"n={params.n} answers cannot be streamed: a stream of LangChain is one answer; use n=1, or generate or "
            "agenerate on a model without streaming=True"
        )


def token_usage(outputs: Sequence[RequestOutput]) -> dict[str, int]:
    """Returns the token counts of all answers to one prompt, which counts once, under OpenAI's names."""
    counts = [token_counts(output) for output in outputs]
    prompt, completion = counts[0].prompt, sum(count.completion for count in counts)
    return {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion}


def added_usage(usages: Sequence[dict[str, int]]) -> dict[str, int]:
    """Returns the sums of token counts by name."""
    return {name: sum(usage[name] for usage in usages) for name in usages[0]} if usages else {}


def llm_output(usages: Sequence[dict[str, int]], model: str) -> dict[str, Any]:
    """Returns what `LLMResult` tells of all its answers together."""
    return {"token_usage": added_usage(usages), "model_name": model}


def _num_at_once(ensemble: Ensemble, prompts: Sequence[AnyPrompt], params: SamplingParams) -> int:
    """Returns how many prompts are answered at once: as many as the queue has places for all answers of."""
    config = ensemble.config
    places = (config.max_batch_size + config.max_queue) // params.n
    return max(1, min(len(prompts), config.max_batch_size, places))


def generate_answers(
    ensemble: Ensemble, prompts: Sequence[AnyPrompt], params: SamplingParams, ids: Sequence[str | None]
) -> list[list[RequestOutput]]:
    """Returns ``n`` answers to each prompt. The first error is raised, and prompts that have not begun are dropped.

    Args:
        ensemble: The ensemble.
        prompts: The prompts.
        params: The parameters of all of them.
        ids: The id of each prompt's request.
    """
    if params.n == 1:
        return [[output] for output in ensemble.generate_batch(list(prompts), params, request_ids=list(ids))]
    if not prompts:
        return []
    with ThreadPoolExecutor(_num_at_once(ensemble, prompts, params)) as pool:
        jobs = [
            pool.submit(ensemble.generate_choices, prompt, params, request_id=own)
            for prompt, own in zip(prompts, ids, strict=True)
        ]
        try:
            return [job.result() for job in jobs]
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


async def agenerate_answers(
    ensemble: Ensemble, prompts: Sequence[AnyPrompt], params: SamplingParams, ids: Sequence[str | None]
) -> list[list[RequestOutput]]:
    """`generate_answers` for event loops; an error or a cancelled task aborts all requests."""
    if params.n == 1:
        return [[output] for output in await ensemble.agenerate_batch(list(prompts), params, request_ids=list(ids))]
    places = asyncio.Semaphore(_num_at_once(ensemble, prompts, params))

    async def answers(prompt: AnyPrompt, own: str | None) -> list[RequestOutput]:
        async with places:
            return await ensemble.agenerate_choices(prompt, params, request_id=own)

    tasks = [asyncio.ensure_future(answers(prompt, own)) for prompt, own in zip(prompts, ids, strict=True)]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
