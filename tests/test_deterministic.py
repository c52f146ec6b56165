"""With ``deterministic=True`` a request's probabilities do not depend on other requests, bit for bit, in bfloat16."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import EMBEDDED, QUESTION, shared_ensemble

from gac_core import ConfigError, Ensemble, MemberConfig
from gac_core.model.prefill import share_parts

LONG = [QUESTION[0], {"role": "user", "content": QUESTION[1]["content"] + " " + " ".join(map(str, range(60)))}]
PROMPTS = [QUESTION, LONG, "The bridge stands in", "one two three one two three one two", "Who", "é ü 😀 é ü"]


def exact(output):
    """A text and the log-probabilities it was picked with."""
    return output.tokens, output.logprobs


@pytest.fixture(scope="module")
def deterministic():
    settings = {"prefill_tokens": 64, "max_batch_size": 4}
    with shared_ensemble(EMBEDDED, dtype="bfloat16", deterministic=True, **settings) as loaded:
        yield loaded


@pytest.mark.parametrize("asked", [{}, {"temperature": 1.0, "top_p": 0.9}, {"threshold": 0.9}])
def test_logprobs_do_not_depend_on_what_else_runs_or_ran(deterministic, asked):
    asked = {"max_tokens": 12, "seed": 4, "logprobs": 2, **asked}
    alone = [exact(deterministic.generate(prompt, **asked)) for prompt in PROMPTS]
    again = [exact(deterministic.generate(prompt, **asked)) for prompt in reversed(PROMPTS)]
    assert again[::-1] == alone
    assert [exact(output) for output in deterministic.generate_batch(PROMPTS, **asked)] == alone
    with ThreadPoolExecutor(3) as threads:
        together = threads.map(lambda prompt: exact(deterministic.generate(prompt, **asked)), PROMPTS[::-1])
        assert list(together)[::-1] == alone


def test_parts_depend_on_their_own_text_alone():
    """However little of the budget others leave, a text is read in the same parts."""
    for others in ([], [(0, 500)], [(0, 9), (40, 30), (0, 100)]):
        texts, parts = [*others, (5, 100)], []
        while texts[-1][1]:
            shares = share_parts(*(list(each) for each in zip(*texts, strict=True)), 32)
            assert 0 < sum(shares) <= 32
            parts += [shares[-1]] if shares[-1] else []
            texts = [(start + tokens, left - tokens) for (start, left), tokens in zip(texts, shares, strict=True)]
            texts = [text for text in texts[:-1] if text[1]] + texts[-1:]
        assert parts == [11, 16, 16, 16, 16, 16, 9]


def test_what_would_batch_is_refused():
    with pytest.raises(ConfigError, match="computes no drafts, not lookup"):
        Ensemble.load(EMBEDDED, deterministic=True, drafts=["lookup"])
    with pytest.raises(ConfigError, match="'ash' has compile=True"):
        Ensemble.load([MemberConfig(EMBEDDED[0], compile=True)], deterministic=True)
    with pytest.raises(ConfigError, match="deterministic must be"):
        Ensemble.load(EMBEDDED, deterministic="yes")
