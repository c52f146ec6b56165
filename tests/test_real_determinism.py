"""With ``deterministic=True`` bfloat16 texts of real models do not depend on what else runs or ran, bit for bit."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

pytestmark = pytest.mark.real

PROMPTS = [
    "The capital of France is",
    "def fibonacci(n):\n",
    "Once upon a time, in a village by the sea,",
    "Das Wetter in Zürich ist heute",
    "1, 1, 2, 3, 5, 8,",
    "SELECT name, age FROM users WHERE",
    "Question: Who wrote Hamlet?\nAnswer:",
    "The capital of France is Paris, and the capital of Italy is Rome, and the capital of Spain is",
]


def exact(output):
    """A text and the log-probabilities it was picked with."""
    return output.tokens, output.logprobs


@pytest.mark.parametrize("asked", [{"prompts": 8}, {"prompts": 4, "temperature": 1.0, "top_p": 0.95}])
def test_bfloat16_texts_do_not_depend_on_what_else_runs_or_ran(real, asked):
    prompts = PROMPTS[: asked.pop("prompts")]
    asked = {"max_tokens": 4, "seed": 3, "logprobs": 0, **asked}
    with real.ensemble("smollm2", "gemma3", dtype="bfloat16", deterministic=True, prefill_tokens=16) as ensemble:
        alone = [exact(ensemble.generate(prompt, **asked)) for prompt in prompts]
        assert [exact(output) for output in ensemble.generate_batch(prompts, **asked)] == alone
        with ThreadPoolExecutor(4) as threads:
            together = threads.map(lambda prompt: exact(ensemble.generate(prompt, **asked)), prompts[3::-1])
            assert list(together)[::-1] == alone[:4]
