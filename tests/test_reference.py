"""The engine gives the same greedy text as the plain float64 reference."""

import pytest
import reference
from conftest import EMBEDDED, QUESTION, STORIES, pair

from gac_core import Ensemble, FinishReason
from gac_core.chat.chat import encode_prompt


def expected(ensemble, folders, prompt, steps, threshold=None, commit="canonical", **traced):
    tokenizers = [member.tokenizer for member in ensemble._members]
    return reference.generate(
        [pair(folder) for folder in folders],
        [tokenizer.byte_level for tokenizer in tokenizers],
        [encode_prompt(tokenizer, prompt) for tokenizer in tokenizers],
        [tokenizer.end_ids for tokenizer in tokenizers],
        [tokenizer.encode_bytes for tokenizer in tokenizers],
        steps,
        threshold,
        None if commit == "context-free" else [tokenizer.encode_continuation for tokenizer in tokenizers],
        **traced,
    )


@pytest.mark.parametrize("threshold", [None, 0.5, 0.9])
def test_embedded_members_equal_the_reference(ensemble, threshold):
    tokens, ended = expected(ensemble, EMBEDDED, QUESTION, 24, threshold)
    output = ensemble.generate(QUESTION, max_tokens=24, threshold=threshold)
    assert list(output.tokens) == tokens
    assert (output.finish_reason is FinishReason.STOP) == ended


@pytest.mark.shared
@pytest.mark.parametrize("commit", ["context-free", "canonical"])
@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("prompt", ["Once upon a time", "Tom and Anna went to the park. They saw a"])
def test_story_models_equal_the_reference(prompt, threshold, commit):
    with Ensemble.load(STORIES, dtype="float32", commit=commit) as stories:
        tokens, _ = expected(stories, STORIES, prompt, 60, threshold, commit)
        output = stories.generate(prompt, max_tokens=60, threshold=threshold, gate=stories.names[0])
        assert list(output.tokens) == tokens
