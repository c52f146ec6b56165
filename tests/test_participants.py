"""A request that one member decides alone neither needs nor touches the other members."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import EMBEDDED, QUESTION, copied_pair, ensemble_of, pair

from gac_core import ChatTemplateError, FinishReason, Grammar, PromptTooLongError, SamplingParams
from gac_langchain import ChatGaC
from gac_llamaindex import GaCLLM

LONG = "In which town is the Torno Bridge? It stands in Halkus. " * 8


@pytest.fixture(scope="module")
def uneven():
    """A member with a long context and a chat template, and one that lacks both."""
    complete, short = pair(EMBEDDED[0]), copied_pair(EMBEDDED[1])
    short[1].chat_template = None
    with ensemble_of([complete, short], contexts=[None, 40]) as ensemble:
        yield ensemble


def test_a_member_alone_is_not_bound_by_another_ones_context(uneven):
    with pytest.raises(PromptTooLongError, match="m1"):
        uneven.generate(LONG, max_tokens=4)
    output = uneven.generate(LONG, gate="m0", threshold=0.0, max_tokens=4)
    assert list(output.stats.members) == ["m0"]
    assert output.usage.prompt_tokens > 40


def test_counts_contexts_and_metadata_are_those_of_the_participants(uneven):
    alone = SamplingParams(gate="m0", threshold=0.0)
    assert (uneven.context, uneven.context_for(alone)) == (40, uneven._members[0].context)
    assert uneven.count_tokens(QUESTION, alone) == uneven.generate(QUESTION, alone, max_tokens=1).usage.prompt_tokens
    with pytest.raises(ChatTemplateError, match="m1"):
        uneven.count_tokens(QUESTION)
    for model in (ChatGaC, GaCLLM):
        wrapper = model(ensemble=uneven, gate="m0", threshold=0.0)
        context = wrapper.profile["max_input_tokens"] if model is ChatGaC else wrapper.metadata.context_window
        assert context == uneven.context_for(alone)
    chat = ChatGaC(ensemble=uneven, gate="m0", threshold=0.0)
    messages = [(turn["role"], turn["content"]) for turn in QUESTION]
    assert chat.invoke(messages, max_tokens=1).usage_metadata["input_tokens"] > 0


def test_a_text_may_grow_past_another_ones_context(uneven):
    asked = {"grammar": Grammar.choices(["Halkus, " * 40]), "max_tokens": 200}
    assert uneven.generate("Who?", **asked).finish_reason is FinishReason.LENGTH
    alone = uneven.generate("Who?", gate="m0", threshold=0.0, **asked)
    assert (alone.finish_reason, alone.text) == (FinishReason.STOP, "Halkus, " * 40)


def test_a_member_alone_needs_no_chat_template_of_another_one(uneven):
    with pytest.raises(ChatTemplateError, match="m1"):
        uneven.generate(QUESTION, max_tokens=4)
    with ensemble_of([pair(EMBEDDED[0])]) as one:
        want = one.generate(QUESTION, max_tokens=30)
    assert uneven.generate(QUESTION, gate="m0", threshold=0.0, max_tokens=30).text == want.text


def test_alone_and_together_share_a_batch(ensemble):
    """Requests with different participants run as one batch and write what each writes by itself."""
    asked = [
        {},
        {"gate": "birch", "threshold": 0.0},
        {"gate": "ash", "threshold": 0.7},
        {"gate": "ash", "threshold": 0.0},
    ]
    want = [ensemble.generate(QUESTION, max_tokens=20, **each).tokens for each in asked]
    with ThreadPoolExecutor(len(asked)) as pool:
        got = list(pool.map(lambda each: ensemble.generate(QUESTION, max_tokens=20, **each).tokens, asked))
    assert got == want


def test_a_sampled_text_does_not_depend_on_the_members_that_take_no_part(ensemble):
    """Also where they have other tokens: random numbers belong to a token's bytes, not to its place in the union."""
    asked = {"max_tokens": 20, "temperature": 1.0, "seed": 4}
    with ensemble_of([pair(EMBEDDED[1])]) as one:
        want = [one.generate(QUESTION, **{**asked, "seed": seed}).tokens for seed in range(4)]
    got = [
        ensemble.generate(QUESTION, gate="birch", threshold=0.0, **{**asked, "seed": seed}).tokens for seed in range(4)
    ]
    assert got == want
