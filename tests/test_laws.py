"""Laws of the engine: fast paths equal plain ones, token for token in fp32."""

from __future__ import annotations

import math
import statistics

import pytest
import torch
from architectures import ARCHITECTURES, random_model
from conftest import EMBEDDED, QUESTION, ensemble_of, pair

from gac_core import fold
from gac_core.model.row_runner import RowRunner
from gac_core.model.runner import SlotRunner
from gac_core.tokenization.vocabulary import Alignment

PROMPTS = ["The bridge stands in", "In which town is the Torno Bridge? It was built by", "Who", "1874 crowns, 14:15"]


def plain(model, tokenizer, prompt, count):
    """transformers' own greedy text, with the control tokens that an ensemble never writes suppressed."""
    control = sorted(set(tokenizer.all_special_ids) - {tokenizer.eos_token_id})
    ids = torch.tensor([tokenizer.encode(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        suppress_tokens=control or None,
    )[0, ids.shape[1] :].tolist()
    return [i for i in out if i != tokenizer.eos_token_id]


def ids_of(ensemble, output):
    writer = ensemble._members[0].tokenizer
    return [writer._ids_by_bytes[token][0] for token in output.tokens]


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_one_member_equals_its_own_generate(name, tokenizer):
    model = random_model(name, tokenizer)
    want = [plain(model, tokenizer, prompt, 40) for prompt in PROMPTS]
    with ensemble_of([(model, tokenizer)]) as one:
        assert isinstance(one._members[0]._runner, SlotRunner)
        alone = [one.generate(prompt, max_tokens=40) for prompt in PROMPTS]
        together = one.generate_batch(PROMPTS, max_tokens=40)
        assert [ids_of(one, output) for output in alone] == want
        assert [ids_of(one, output) for output in together] == want


def test_a_row_runner_equals_generate_too(tokenizer):
    model = random_model("llama", tokenizer)
    want = plain(model, tokenizer, PROMPTS[1], 30)
    with ensemble_of([(model, tokenizer)]) as one:
        one._members[0]._runner = RowRunner(model)
        assert ids_of(one, one.generate(PROMPTS[1], max_tokens=30)) == want
        assert [ids_of(one, o) for o in one.generate_batch([PROMPTS[1]] * 2, max_tokens=30)] == [want, want]


def test_eager_attention_runs_in_slots(tokenizer):
    model = random_model("llama", tokenizer)
    want = plain(model, tokenizer, PROMPTS[1], 30)
    model.set_attn_implementation("eager")
    with ensemble_of([(model, tokenizer)]) as one:
        assert isinstance(one._members[0]._runner, SlotRunner)
        assert ids_of(one, one.generate(PROMPTS[1], max_tokens=30)) == want


@pytest.mark.parametrize("count", [2, 3])
def test_copies_of_a_model_equal_that_model(count, tokenizer):
    folder = EMBEDDED[0]
    with (
        ensemble_of([pair(folder)]) as one,
        ensemble_of([pair(folder) for _ in range(count)]) as many,
    ):
        assert many.generate(QUESTION, max_tokens=30).tokens == one.generate(QUESTION, max_tokens=30).tokens
    copies = [(random_model("llama", tokenizer), tokenizer) for _ in range(count + 1)]
    with ensemble_of(copies[:1]) as one, ensemble_of(copies[1:]) as many:
        for prompt in PROMPTS:
            assert many.generate(prompt, max_tokens=30).tokens == one.generate(prompt, max_tokens=30).tokens


@pytest.mark.parametrize("threshold", [None, 0.6])
@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_batched_equals_alone(ensemble, threshold, temperature):
    prompts = [QUESTION, *PROMPTS] * 2
    asked = {"max_tokens": 20, "threshold": threshold, "temperature": temperature, "seed": 12}
    alone = [ensemble.generate(prompt, **asked) for prompt in prompts]
    together = ensemble.generate_batch(prompts, **asked)
    assert sum(len(output.tokens) for output in alone) > 0
    assert [output.tokens for output in together] == [output.tokens for output in alone]
    assert [o.stats.steps_ensembled for o in together] == [o.stats.steps_ensembled for o in alone]


def test_catching_up_equals_never_having_been_skipped(tokenizer):
    """After steps without it, a member gives what it would have given had it read each token as it came."""
    gate, other = (random_model(name, tokenizer, seed=seed) for name, seed in (("llama", 0), ("qwen2", 1)))
    with ensemble_of([(gate, tokenizer), (other, tokenizer)], commit="context-free", gate="m0") as both:
        alignments = [Alignment(both._union, member.tokenizer) for member in both._members]
        for prompt in PROMPTS:
            alone = both.generate(prompt, max_tokens=40, threshold=0.0, logprobs=0)
            # Between the gate's more and less sure moments, so that both kinds of step happen.
            threshold = statistics.median(math.exp(entry.logprob) for entry in alone.logprobs)
            output = both.generate(prompt, max_tokens=40, threshold=threshold, drafts=False)
            stats = output.stats
            assert stats.members["m0"].forwards == stats.steps
            assert stats.members["m1"].forwards == stats.steps_ensembled
            # The same text with the other member asked at every step: its answer is looked at only where it counts.
            text = both._members[0].tokenizer.encode_prompt(prompt)
            for token in output.tokens:
                ids = torch.tensor([text])
                with torch.no_grad():
                    probs = [
                        alignment.align(model(ids, use_cache=False).logits[:, -1])[0]
                        for model, alignment in zip((gate, other), alignments, strict=True)
                    ]
                combined = probs[0] if probs[0].max() >= threshold else (probs[0] + probs[1]) / 2
                assert both._union.tokens[int(combined.argmax())] == token
                text += both._members[0].tokenizer.encode_bytes(token)
            assert 0 < stats.steps_ensembled < stats.steps


@pytest.mark.parametrize("name", list(ARCHITECTURES))
def test_a_chunk_after_a_gap_equals_token_by_token(name, tokenizer):
    runner = SlotRunner(random_model(name, tokenizer))
    from gac_core.model.runner import Row

    ids = tuple(int(i) for i in torch.randint(3, len(tokenizer), (30,), generator=torch.Generator().manual_seed(1)))
    whole = runner.forward([Row(0, 0, ids, num_logits=30)])[0]
    single = [runner.forward([Row(1, i, ids[i : i + 1])])[0] for i in range(30)]
    torch.testing.assert_close(torch.cat(single), whole, rtol=2e-4, atol=2e-4)
    # Ragged neighbours, a cut back to 12, and a chunk of 18 on top.
    other = runner.forward([Row(1, 12, ids[12:], num_logits=18), Row(3, 0, ids[:5], num_logits=5)])
    torch.testing.assert_close(other[0], whole[12:], rtol=2e-4, atol=2e-4)
    torch.testing.assert_close(other[1], whole[:5], rtol=2e-4, atol=2e-4)


def test_a_joined_stream_is_the_generated_text(ensemble):
    stopped = set()
    for prompt in (QUESTION, *PROMPTS):
        chunks = list(ensemble.stream(prompt, max_tokens=20, stop=["o"]))
        whole = ensemble.generate(prompt, max_tokens=20, stop=["o"])
        assert "".join(chunk.text for chunk in chunks) == whole.text == fold(chunks).text
        assert "o" not in whole.text
        stopped.add(whole.stopped_by)
    assert "o" in stopped


def test_a_seed_fixes_the_text_whatever_else_runs(ensemble):
    asked = {"temperature": 1.0, "seed": 7, "max_tokens": 20}
    alone = ensemble.generate(PROMPTS[0], **asked)
    assert ensemble.generate(PROMPTS[0], **asked).tokens == alone.tokens
    others = [
        ensemble.stream(prompt, temperature=1.3, seed=index, max_tokens=30) for index, prompt in enumerate(PROMPTS)
    ]
    for other in others:
        next(other)
    assert ensemble.generate(PROMPTS[0], **asked).tokens == alone.tokens
    different = {ensemble.generate(PROMPTS[0], **{**asked, "seed": seed}).tokens for seed in range(5)}
    assert len(different) > 1
    again = ensemble.generate(PROMPTS[0], temperature=1.0, max_tokens=20)
    assert again.seed is not None
    assert ensemble.generate(PROMPTS[0], temperature=1.0, max_tokens=20, seed=again.seed).tokens == again.tokens


def test_repetition_penalty_is_that_of_transformers(tokenizer):
    model = random_model("llama", tokenizer)
    ids = torch.tensor([tokenizer.encode(PROMPTS[1])])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=30,
        do_sample=False,
        repetition_penalty=1.5,
        suppress_tokens=sorted(set(tokenizer.all_special_ids) - {tokenizer.eos_token_id}) or None,
    )[0, ids.shape[1] :].tolist()
    with ensemble_of([(model, tokenizer)]) as one:
        got = one.generate(PROMPTS[1], max_tokens=30, repetition_penalty=1.5)
        assert ids_of(one, got) == [i for i in out if i != tokenizer.eos_token_id]
