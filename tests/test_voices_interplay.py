"""Documents in voices, together with everything else that a request may ask for."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import EMBEDDED, ensemble_of, random_pair, shared_ensemble
from test_voices import LONG, QUESTION, TEXTS, same

from gac_core import Conversation, Document, DocumentPrompt, Grammar, fold
from gac_core.model.row_runner import RowRunner

CHAT = [{"role": "system", "content": "Answer briefly."}, {"role": "user", "content": QUESTION}]
SCHEMA = {"type": "object", "properties": {"builder": {"type": "string", "maxLength": 12}}, "required": ["builder"]}
TOOL = {"type": "function", "function": {"name": "look_up", "parameters": {"type": "object", "properties": {}}}}


def test_streams_batches_and_event_loops_give_the_same_answer(ensemble):
    prompt = DocumentPrompt(CHAT, TEXTS)
    plain = ensemble.generate(prompt, max_tokens=12)
    same(plain, fold(ensemble.stream(prompt, max_tokens=12)))
    same(plain, ensemble.generate_batch(["x", prompt, CHAT[:1]], max_tokens=12)[1])

    async def together():
        return await asyncio.gather(*[ensemble.agenerate(CHAT, documents=TEXTS, max_tokens=12) for _ in range(3)])

    for output in asyncio.run(together()):
        same(plain, output)
    with ThreadPoolExecutor(3) as threads:
        for output in threads.map(lambda _: ensemble.generate(prompt, max_tokens=12), range(3)):
            same(plain, output)


@pytest.mark.ray
def test_members_in_actors_read_documents_too(ray_nodes):
    prompts = [DocumentPrompt(QUESTION, LONG), DocumentPrompt(CHAT, TEXTS, weights=[1, 2, 3])]
    with ray_nodes.load(EMBEDDED[:2]) as remote, shared_ensemble(EMBEDDED[:2]) as local:
        for asked in ({}, {"threshold": 0.6}, {"temperature": 1.0, "seed": 2}, {"combine": "geometric"}):
            for prompt in prompts:
                same(local.generate(prompt, max_tokens=10, **asked), remote.generate(prompt, max_tokens=10, **asked))


def test_several_answers_to_one_prompt(ensemble):
    settings = {"max_tokens": 8, "temperature": 1.0}
    several = ensemble.generate_choices(QUESTION, documents=TEXTS, n=3, seed=5, **settings)
    for each in several:
        same(each, ensemble.generate(QUESTION, documents=TEXTS, seed=each.seed, **settings))


@pytest.mark.parametrize("threshold", [None, 0.7])
def test_a_grammar_holds(ensemble, threshold):
    grammar = Grammar.json_schema(SCHEMA)
    output = ensemble.generate(CHAT, documents=TEXTS, grammar=grammar, max_tokens=60, threshold=threshold)
    assert isinstance(json.loads(output.text)["builder"], str)
    again = ensemble.generate(
        CHAT, documents=TEXTS[::-1], grammar=grammar, max_tokens=60, threshold=threshold, drafts=False
    )
    same(output, again)


def test_tools_can_be_called(ensemble):
    conversation = Conversation(CHAT, tools=[TOOL], tool_choice="required")
    output = ensemble.generate(conversation, documents=TEXTS, max_tokens=60)
    assert [call.name for call in output.tool_calls] == ["look_up"]


@pytest.mark.parametrize(
    "asked",
    [
        {"repetition_penalty": 1.3},
        {"presence_penalty": 1.0, "logit_bias": {" the": -100.0}},
        {"stop": ["e"]},
        {"combine": "safe", "gate": "birch"},
        {"combine": "power:-0.5"},
        {"logprobs": 3, "token_stats": True},
        {"weights": {"ash": 1.0, "birch": 3.0, "cedar": 0.0}},
        {"threshold": 0.6, "gate": "cedar"},
    ],
    ids=str,
)
def test_one_document_is_the_plain_request_whatever_is_asked(ensemble, asked):
    plain = ensemble.generate(QUESTION.replace("{document}", LONG[0]), max_tokens=12, **asked)
    output = ensemble.generate(QUESTION, documents=[LONG[0]], max_tokens=12, **asked)
    same(plain, output)
    assert (plain.logprobs is None) == (output.logprobs is None)
    if plain.logprobs is not None:
        assert [each.logprob for each in output.logprobs] == pytest.approx(
            [e.logprob for e in plain.logprobs], abs=1e-5
        )
    reverse = ensemble.generate(QUESTION, documents=LONG[::-1], max_tokens=12, **asked)
    same(ensemble.generate(QUESTION, documents=LONG, max_tokens=12, **asked), reverse)


def test_members_that_run_row_by_row_read_documents_too():
    with ensemble_of([random_pair("llama")]) as one:
        want = one.generate(QUESTION, documents=LONG, max_tokens=12)
    with ensemble_of([random_pair("llama")]) as other:
        other._members[0]._runner = RowRunner(other._members[0]._runner._model)
        same(want, other.generate(QUESTION, documents=LONG, max_tokens=12))


def test_deterministic_probabilities_do_not_depend_on_company():
    with shared_ensemble(EMBEDDED[:2], dtype="bfloat16", deterministic=True) as two:
        prompt = DocumentPrompt(QUESTION, LONG)
        alone = two.generate(prompt, max_tokens=8, logprobs=1)
        together = two.generate_batch([QUESTION, prompt, LONG[0]], max_tokens=8, logprobs=1)[1]
        assert (alone.tokens, alone.logprobs) == (together.tokens, together.logprobs)


def test_more_documents_than_the_batch_size(ensemble):
    documents = [Document(f"{text} Note {number}.") for number in range(4) for text in TEXTS]
    with shared_ensemble(EMBEDDED[:2], max_batch_size=2) as small, shared_ensemble(EMBEDDED[:2]) as large:
        prompts = [DocumentPrompt(QUESTION, documents[first:]) for first in (0, 1)]
        for one, other in zip(
            small.generate_batch(prompts, max_tokens=6), large.generate_batch(prompts, max_tokens=6), strict=True
        ):
            same(one, other)


def test_usage_counts_what_all_voices_of_the_gate_read(ensemble):
    output = ensemble.generate(DocumentPrompt(QUESTION, TEXTS, prior=False), max_tokens=2)
    lengths = [len(ensemble.prompt_tokens(QUESTION.replace("{document}", text))[ensemble.gate]) for text in TEXTS]
    assert output.usage.prompt_tokens == sum(lengths)
