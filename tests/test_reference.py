"""The engine gives the same greedy text as the plain float64 reference."""

import pytest
import reference
from conftest import QUESTION, STORIES, pair, shared_ensemble

from gac_core import FinishReason


def assert_equal(ensemble, members, prompt, steps, **asked):
    """Asserts that tokens and end of an answer are those of the reference; returns the output."""
    gate = ensemble.names.index(asked.get("gate", ensemble.gate))
    settings = {"commit": ensemble.config.commit, **asked, "gate": gate}
    tokens, ended = reference.generate(members, prompt, steps, **settings)
    output = ensemble.generate(prompt, max_tokens=steps, **asked)
    assert list(output.tokens) == tokens
    assert (output.finish_reason is FinishReason.STOP) == ended
    return output


@pytest.mark.parametrize("threshold", [None, 0.5, 0.9])
def test_embedded_members_equal_the_reference(ensemble, plain_members, threshold):
    assert_equal(ensemble, plain_members, QUESTION, 24, threshold=threshold)


@pytest.fixture(scope="module")
def plain_stories():
    return [reference.PlainMember(*pair(folder)) for folder in STORIES]


@pytest.fixture(scope="module", params=["context-free", "canonical"])
def committing(request):
    with shared_ensemble(STORIES, commit=request.param) as stories:
        yield stories


@pytest.mark.shared
@pytest.mark.parametrize("threshold", [None, 0.5])
@pytest.mark.parametrize("prompt", ["Once upon a time", "Tom and Anna went to the park. They saw a"])
def test_story_models_equal_the_reference(committing, plain_stories, prompt, threshold):
    asked = {"threshold": threshold, "gate": committing.names[0]}
    assert_equal(committing, plain_stories, prompt, 60, **asked)
