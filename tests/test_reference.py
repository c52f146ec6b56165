"""The engine gives the same greedy text as the plain float64 reference, with every combination rule and gate rule."""

import pytest
import reference
import torch
from conftest import EMBEDDED, QUESTION, STORIES, pair, shared_ensemble, talking_pairs

from gac_core import FinishReason
from gac_core.combination import COMBINERS, GATES


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


@pytest.mark.parametrize(
    ("weights", "combine"),
    [((0.0, 1.0, 0.0), "arithmetic"), ((3.0, 0.0, 1.0), "geometric"), *(((1.0, 2.0, 5.0), rule) for rule in COMBINERS)],
)
def test_weights_and_combination_of_a_call_equal_the_reference(ensemble, plain_members, weights, combine):
    for prompt in (QUESTION, "In which town"):
        output = assert_equal(ensemble, plain_members, prompt, 16, weights=weights, combine=combine)
        parts = {name: weight / sum(weights) for name, weight in zip(ensemble.names, weights, strict=True) if weight}
        assert output.stats.settings.weights == pytest.approx(parts)
        assert list(output.stats.members) == list(parts)


@pytest.fixture(scope="module")
def plain_talkers():
    return [reference.PlainMember(*pair) for pair in talking_pairs()]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (5.0, 2.0)])
@pytest.mark.parametrize(("gate_rule", "combine"), [("margin", "geometric"), *((rule, "arithmetic") for rule in GATES)])
def test_gate_rules_of_a_call_equal_the_reference(talkers, plain_talkers, gate_rule, combine, weights):
    """On random members, with thresholds that the gate reaches at some steps and not at others."""
    gate = f"m{list(GATES).index(gate_rule) % 2}"
    asked = {"weights": weights, "combine": combine, "gate_rule": gate_rule}
    index, trace = talkers.names.index(gate), []
    reference.generate(plain_talkers, "The bridge", 24, gate=index, trace=trace, **asked)
    certainty = reference.find_rule(reference.GATES, gate_rule)
    share = weights[index] / sum(weights)
    sure = sorted(certainty(torch.from_numpy(parts[index]), share) for parts, _ in trace)
    thresholds = [None, *((sure[n - 1] + sure[n]) / 2 for n in (len(sure) // 3, 2 * len(sure) // 3))]
    shares = [
        assert_equal(
            talkers, plain_talkers, "The bridge", 24, gate=gate, threshold=threshold, **asked
        ).stats.share_ensembled
        for threshold in thresholds
    ]
    assert shares[0] == 1
    assert all(0 < share < 1 for share in shares[1:])


def test_a_configured_ensemble_equals_the_reference(plain_members):
    settings = {"weights": (2.0, 1.0, 4.0), "combine": "geometric", "gate_rule": "margin", "threshold": 0.6}
    with shared_ensemble(EMBEDDED, **settings) as configured:
        tokens, _ = reference.generate(plain_members, QUESTION, 20, gate=2, **settings)
        assert list(configured.generate(QUESTION, max_tokens=20).tokens) == tokens


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
