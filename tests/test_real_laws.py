"""The laws of the engine on real language models, token for token in fp32."""

from __future__ import annotations

import math
import statistics
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from conftest import REAL_NAMES

from gac_core.tokenization.vocabulary import Alignment

pytestmark = pytest.mark.real

PROMPTS = [
    "def fibonacci(n):\n",
    "The capital of France is",
    "Question: Who wrote Hamlet?\nAnswer:",
    "Once upon a time, in a village by the sea,",
    "import json\n\ndef read_config(path):\n    ",
    "Water boils at 100 degrees Celsius, or",
    "1, 1, 2, 3, 5, 8,",
    "The three primary colours are",
    "SELECT name, age FROM users WHERE",
    "Das Wetter in Zürich ist heute",
]
QUOTE = (
    "The Torno Bridge is the work of Melka Dorin. The bridge stands in Halkus. It was built in 1874.\n"
    "Repeat: The Torno Bridge is the work of Melka Dorin."
)


@pytest.fixture(scope="module")
def pair(real):
    """Two members with different tokenizers, the second three times as heavy."""
    with real.ensemble("smollm2", "qwen", weights=[1.0, 3.0]) as loaded:
        yield loaded


def generate(model, member, prompt, count):
    """transformers' own greedy text, with the control tokens that an ensemble never writes suppressed."""
    silent = [i for i, data in enumerate(member.token_bytes) if data is None and i not in member.end_ids]
    ids = torch.tensor([member.encode_prompt(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        suppress_tokens=silent or None,
        eos_token_id=sorted(member.end_ids),
        repetition_penalty=1.0,
    )[0, ids.shape[1] :].tolist()
    return member.decode(out)


@pytest.mark.parametrize("name", REAL_NAMES)
def test_one_member_equals_its_own_generate(real, name):
    with real.ensemble(name) as one:
        member, (model, _) = one._members[0].tokenizer, real.pair(name)
        want = [generate(model, member, prompt, 20) for prompt in PROMPTS]
        assert [b"".join(o.tokens) for o in one.generate_batch(PROMPTS, max_tokens=20)] == want
        assert b"".join(one.generate(PROMPTS[0], max_tokens=20).tokens) == want[0]


@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.0, 1e6), (0.3, 7.1)])
def test_copies_equal_the_member_for_any_weights(real, weights):
    with real.ensemble("smollm2") as one, real.ensemble("smollm2", "smollm2", weights=list(weights)) as copies:
        asked = {"max_tokens": 24}
        want = [output.tokens for output in one.generate_batch(PROMPTS[:5], **asked)]
        assert [output.tokens for output in copies.generate_batch(PROMPTS[:5], **asked)] == want
        sampled = {"max_tokens": 24, "temperature": 1.0, "seed": 3}
        want = [output.tokens for output in one.generate_batch(PROMPTS[:2], **sampled)]
        assert [output.tokens for output in copies.generate_batch(PROMPTS[:2], **sampled)] == want


@pytest.mark.parametrize("heavy", REAL_NAMES)
def test_with_all_of_the_weight_a_member_writes_its_own_text(real, heavy):
    weights = [1e6 if name == heavy else 1.0 for name in REAL_NAMES]
    with real.ensemble(heavy) as one, real.ensemble(*REAL_NAMES, weights=weights) as trio:
        for asked in ({"max_tokens": 16}, {"max_tokens": 8, "temperature": 0.8, "seed": 11}):
            want = [output.text for output in one.generate_batch(PROMPTS[:4], **asked)]
            assert [output.text for output in trio.generate_batch(PROMPTS[:4], **asked)] == want


@pytest.mark.parametrize("asked", [{}, {"threshold": 0.6}, {"temperature": 1.0, "seed": 5}])
def test_a_batch_writes_what_each_request_writes_alone(pair, asked):
    asked = {"max_tokens": 20, **asked}
    alone = [pair.generate(prompt, **asked) for prompt in PROMPTS[:4]]
    assert [o.tokens for o in pair.generate_batch(PROMPTS[:4], **asked)] == [o.tokens for o in alone]
    with ThreadPoolExecutor(4) as pool:
        together = pool.map(lambda prompt: pair.generate(prompt, **asked), PROMPTS[:4])
        assert [o.tokens for o in together] == [o.tokens for o in alone]


@pytest.mark.parametrize("asked", [{}, {"threshold": 0.6}, {"temperature": 1.0, "seed": 5}])
def test_drafts_do_not_change_the_text(pair, asked):
    prompts = [QUOTE, PROMPTS[0], PROMPTS[2]]
    asked = {"max_tokens": 24, **asked}
    plain = pair.generate_batch(prompts, drafts=False, **asked)
    drafted = pair.generate_batch(prompts, drafts=True, **asked)
    assert [o.tokens for o in drafted] == [o.tokens for o in plain]


def test_a_seed_fixes_the_text(pair):
    asked = {"temperature": 1.0, "max_tokens": 16}
    first = pair.generate(PROMPTS[3], seed=7, **asked)
    assert pair.generate(PROMPTS[3], seed=7, **asked).tokens == first.tokens
    assert len({pair.generate(PROMPTS[3], seed=seed, **asked).tokens for seed in range(4)}) > 1


def test_catching_up_equals_never_having_been_skipped(real):
    """After steps without it, a member gives what it would have given had it read each token as it came."""
    (model, _), prompt = real.pair("smollm2"), PROMPTS[3]
    with real.ensemble("smollm2", "qwen", weights=[1.0, 3.0], commit="context-free") as both:
        models = [model, real.pair("qwen")[0]]
        alignments = [Alignment(both._union, member.tokenizer) for member in both._members]
        alone = both.generate(prompt, max_tokens=16, gate="smollm2", threshold=0.0, logprobs=0)
        threshold = statistics.median(math.exp(entry.logprob) for entry in alone.logprobs)
        output = both.generate(prompt, max_tokens=16, gate="smollm2", threshold=threshold, drafts=False)
        assert 0 < output.stats.steps_ensembled < output.stats.steps
        assert output.stats.members["qwen"].forwards == output.stats.steps_ensembled
        texts = [member.tokenizer.encode_prompt(prompt) for member in both._members]
        for token in output.tokens:
            with torch.inference_mode():
                gate, other = (
                    alignment.align(each(torch.tensor([ids]), use_cache=False).logits[:, -1])[0]
                    for each, ids, alignment in zip(models, texts, alignments, strict=True)
                )
            combined = gate if gate.max() >= threshold else (gate + 3 * other) / 4
            assert both._union.tokens[int(combined.argmax())] == token
            for ids, member in zip(texts, both._members, strict=True):
                ids += member.tokenizer.encode_bytes(token)


def test_a_member_alone_needs_nothing_of_the_others(real):
    """A chat with the member that has a template, beside one that has none."""
    talk = [{"role": "user", "content": "Which animal barks? Answer with one word."}]
    with real.ensemble("qwen") as one, real.ensemble("gemma3", "qwen") as both:
        want = one.generate(talk, max_tokens=8)
        output = both.generate(talk, gate="qwen", threshold=0.0, max_tokens=8)
        assert output.text == want.text
        assert list(output.stats.members) == ["qwen"]
