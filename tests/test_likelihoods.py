"""How likely members find a text: equal to transformers' own loss, read once, and weights that follow from it."""

from __future__ import annotations

import math
import pickle

import pytest
import torch
from compact import compactly
from conftest import EMBEDDED, LONG_PROMPT, QUESTION, ensemble_of, member_ids, pair, random_pair, shared_ensemble

from gac_core import EnsembleConfig, MemberConfig, MemberError, RequestError, RequestTimeoutError, SamplingParams
from gac_core.decoding import measurement
from gac_core.executor import evaluator
from gac_core.executor.evaluator import target_logprobs
from gac_core.executor.messages import Answer, TargetLogprobs, Targets
from gac_core.executor.ray import wire
from gac_core.executor.ray.wire import AnswerMessage
from gac_core.likelihood import Likelihood, perplexity_weights

TEXT = "In which town is the Torno Bridge? It was built in 1874, of stone, by Melka Dorin."


@pytest.fixture(scope="module")
def parts():
    """The embedded members, which read texts in parts of 16 tokens."""
    with shared_ensemble(EMBEDDED, prefill_tokens=16) as ensemble:
        yield ensemble


def losses(text):
    """Sums of transformers' losses over a text, by member."""
    found = {}
    for folder in EMBEDDED:
        model, tokenizer = pair(folder)
        ids = torch.tensor([tokenizer(text)["input_ids"]])
        if ids[0, -1] == tokenizer.eos_token_id:
            ids = ids[:, :-1]
        with torch.no_grad():
            loss = model(ids, labels=ids).loss
        found[folder.rpartition("/")[2]] = (-float(loss) * (ids.shape[1] - 1), ids.shape[1] - 1)
    return found


def test_likelihoods_are_the_losses_of_transformers(ensemble):
    found = ensemble.prompt_likelihoods(TEXT)
    for name, (logprob, tokens) in losses(TEXT).items():
        own = found[name]
        assert own.tokens == tokens
        assert own.logprob == pytest.approx(logprob, rel=1e-5)
        assert own.perplexity == pytest.approx(math.exp(-logprob / tokens), rel=1e-4)
        assert own.bits_per_byte == pytest.approx(-logprob / math.log(2) / own.bytes, rel=1e-5)
        assert len(TEXT) - 8 < own.bytes <= len(TEXT)


@pytest.mark.parametrize("prompt", [LONG_PROMPT, QUESTION], ids=["long", "chat"])
def test_parts_change_nothing(ensemble, parts, prompt, monkeypatch):
    whole = ensemble.prompt_likelihoods(prompt)
    monkeypatch.setattr(measurement, "MAX_LOGIT_BYTES", 1)
    monkeypatch.setattr(evaluator, "BLOCK_BYTES", 1)
    for name, own in parts.prompt_likelihoods(prompt).items():
        assert own.tokens == whole[name].tokens
        assert own.logprob == pytest.approx(whole[name].logprob, rel=1e-5)


def test_the_prompt_is_read_once(parts):
    """Parts of a text are one forward each, and what generates after it begins behind it."""
    prompt = "The bridge stands in Halkus, and " * 4
    parts.prompt_likelihoods(prompt)
    stats = parts.generate(prompt, max_tokens=1).stats
    assert all(own.reused_tokens == own.prompt_tokens - 1 and own.tokens == 1 for own in stats.members.values())
    other = "Garno Rinva has founded the festival, " * 4
    weighed = parts.generate(other, max_tokens=1, weights="perplexity").stats
    assert all(own.tokens == own.prompt_tokens for own in weighed.members.values())
    plain = parts.prompt_likelihoods(other)
    assert {name: own.tokens for name, own in weighed.likelihoods.items()} == {n: o.tokens for n, o in plain.items()}


def test_a_batch_of_measurements_and_answers(ensemble):
    """Each request's numbers are its own, and others are answered meanwhile."""
    prompts = [TEXT, "The bridge stands in", QUESTION, TEXT[:40]]
    alone = [ensemble.generate(prompt, max_tokens=4, weights="perplexity") for prompt in prompts]
    plain = ensemble.generate("The festival in", max_tokens=4)
    together = ensemble.generate_batch(prompts, max_tokens=4, weights="perplexity")
    for one, other in zip(alone, together, strict=True):
        assert one.tokens == other.tokens
        assert other.stats.settings.weights == pytest.approx(one.stats.settings.weights, rel=1e-4)
    assert ensemble.generate("The festival in", max_tokens=4).tokens == plain.tokens


async def test_perplexity_weights_are_those_of_the_formula_everywhere(ensemble):
    found = ensemble.prompt_likelihoods(QUESTION)
    again = await ensemble.aprompt_likelihoods(QUESTION)
    assert [each.logprob for each in again.values()] == pytest.approx([each.logprob for each in found.values()])
    want = perplexity_weights(found)
    async_output = await ensemble.agenerate(QUESTION, max_tokens=6, weights="perplexity")
    *_, last = ensemble.stream(QUESTION, max_tokens=6, weights="perplexity")
    with shared_ensemble(EMBEDDED) as given:
        same = given.generate(QUESTION, max_tokens=6, weights=want)
    with shared_ensemble(EMBEDDED, weights=[1, 1, 1]) as other, compactly():
        config = EnsembleConfig(other.config.members, weights="perplexity")
        with type(other)(other._members, config) as configured:
            by_config = configured.generate(QUESTION, max_tokens=6)
    for output in (async_output, last.output, by_config):
        assert output.stats.settings.weights == pytest.approx(want, rel=1e-4)
        assert output.tokens == same.tokens
        assert list(output.stats.likelihoods) == ensemble.names


def test_nothing_is_measured_where_it_decides_nothing(ensemble):
    gate = ensemble.generate("The bridge", max_tokens=1, weights="perplexity", threshold=0.0)
    assert gate.stats.likelihoods == {}
    with shared_ensemble(EMBEDDED[:1]) as one:
        assert one.generate("The bridge", max_tokens=1, weights="perplexity").stats.likelihoods == {}


def test_continuations_are_measured_after_the_prompt(ensemble):
    """The chain rule: a text is as likely as its beginning and its continuation together."""
    (found,) = ensemble.continuation_likelihoods([("The bridge stands", " in Halkus")], [1.0, 2.0])
    for folder in EMBEDDED:
        model, _ = pair(folder)
        first, flat = found[folder.rpartition("/")[2]]
        member = next(each for each in ensemble._members if each.name == folder.rpartition("/")[2])
        start = member.tokenizer.encode_prompt("The bridge stands")
        ids = torch.tensor([[*start, *member.tokenizer.encode_continuation(" in Halkus")]])
        with torch.no_grad():
            logits = model(ids).logits[0, len(start) - 1 : -1]
        for temperature, own in ((1.0, first), (2.0, flat)):
            logprobs = torch.log_softmax(logits / temperature, -1).gather(1, ids[0, len(start) :, None])
            assert own.logprob == pytest.approx(float(logprobs.sum()), rel=1e-5)
        assert (first.tokens, first.bytes) == (ids.shape[1] - len(start), len(" in Halkus"))


def test_a_members_temperature_is_that_of_its_likelihood(ensemble):
    plain = ensemble.continuation_likelihoods([("The bridge", " stands")], [1.0, 3.0])
    members = tuple(
        MemberConfig(folder, temperature=3.0 if index == 1 else 1.0) for index, folder in enumerate(EMBEDDED)
    )
    with type(ensemble)(ensemble._members, EnsembleConfig(members)) as scaled:
        own = scaled.continuation_likelihoods([("The bridge", " stands")])
    assert own[0]["birch"][0].logprob == pytest.approx(plain[0]["birch"][1].logprob, rel=1e-5)
    assert own[0]["ash"][0].logprob == pytest.approx(plain[0]["ash"][0].logprob, rel=1e-5)


# ---- errors


def test_what_cannot_be_measured_is_refused(ensemble):
    nothing = r"for member '\w+' no text follows its first token; give a longer prompt"
    with pytest.raises(RequestError, match=nothing):
        ensemble.prompt_likelihoods("a")
    with pytest.raises(RequestError, match=f"{nothing}, or weights as numbers"):
        ensemble.generate("a", weights="perplexity")
    for texts, temperatures, reason in (
        ([("a", "")], (), "the continuation is empty"),
        ([("a", None)], (), "the continuation must be a string, not None"),
        ([("a", "\udc80")], (), "the continuation contains the lone surrogate"),
        (["ab"], (), r"texts\[0\] must be a prompt and its continuation, not 'ab'"),
        ([("a town", " in")], [0.0], "each of temperatures must be above 0"),
    ):
        with pytest.raises(RequestError, match=reason):
            ensemble.continuation_likelihoods(texts, temperatures)
    with pytest.raises(RequestError, match="params must be a SamplingParams or None"):
        ensemble.prompt_likelihoods("a town", {})
    with pytest.raises(RequestError, match=r"weights='auto' needs a calibration.*gac calibrate"):
        ensemble.generate("a town", weights="auto")
    with pytest.raises(RequestError, match=r"weights must be a mapping of names to numbers.*'perplexity', not 'often'"):
        ensemble.generate("a town", weights="often")


@pytest.mark.parametrize("policy", ["fail", "drop"])
def test_a_member_that_fails_ends_a_measurement_and_leaves_a_request(policy):
    models = [random_pair("llama"), random_pair("qwen2", seed=1)]
    with ensemble_of(models, on_member_failure=policy) as both:
        broken = both._members[1]._runner
        forward, broken.forward = broken.forward, lambda rows: (_ for _ in ()).throw(RuntimeError("no"))
        with pytest.raises(MemberError, match="member 'm1' failed"):
            both.prompt_likelihoods("a town in the hills")
        if policy == "drop":
            output = both.generate("a town in the hills", max_tokens=2, weights="perplexity")
            assert [each.member for each in output.stats.dropped] == ["m1"]
            assert output.stats.settings.weights == {"m0": 1.0}
        broken.forward = forward
        assert list(both.prompt_likelihoods("a town in the hills")) == ["m0", "m1"]


def test_unusable_logits_are_the_members_failure(monkeypatch):
    with ensemble_of([random_pair("llama")]) as one:
        runner = one._members[0]._runner
        forward = runner.forward
        monkeypatch.setattr(runner, "forward", lambda rows: [each * float("nan") for each in forward(rows)])
        with pytest.raises(MemberError, match="'m0'"):
            one.prompt_likelihoods("a town in the hills")


def test_a_measurement_ends_in_time(ensemble):
    with pytest.raises(RequestTimeoutError):
        ensemble.prompt_likelihoods("a town " * 50, SamplingParams(timeout=1e-6))


# ---- pure functions


def test_gathered_log_probabilities_are_those_of_log_softmax(monkeypatch):
    logits, ids = torch.randn(7, 11) * 4, (3, 0, 10, 4, 4, 1, 2)
    want = [torch.log_softmax(logits / t, -1)[range(7), list(ids)] for t in (0.5, 1.0, 2.0)]
    for size in (2**25, 1):
        monkeypatch.setattr(evaluator, "BLOCK_BYTES", size)
        found = target_logprobs(Targets(ids, (0.5, 1.0, 2.0)), logits)
        torch.testing.assert_close(found, torch.stack(want))
    assert target_logprobs(Targets((), (1.0,)), logits[:0]).shape == (1, 0)


def test_what_crosses_to_a_process_is_small():
    answer = AnswerMessage.of(Answer(TargetLogprobs(((-1.5,) * 64,))), None, "here")
    data = wire.encode(answer)
    assert wire.decode([data]).answer(None).result.values == ((-1.5,) * 64,)
    assert len(data) < 64 * 12 + 600
    assert pickle.loads(pickle.dumps(Targets((1, 2), (1.0,)))) == Targets((1, 2), (1.0,))


def test_perplexity_weights_of_one_tokenizer_are_the_papers():
    """softmax(-log PPL / tau), worked out by hand."""
    given = {"a": Likelihood(-20.0, 10, 40), "b": Likelihood(-30.0, 10, 40)}
    found = perplexity_weights(given, tau=0.5)
    assert found["a"] == pytest.approx(1 / (1 + math.exp(-2.0)))
    assert sum(found.values()) == pytest.approx(1)


def test_perplexity_weights_do_not_depend_on_how_a_text_is_cut():
    """Two members that give a text the same probability have the same weight, whatever their tokens."""
    found = perplexity_weights({"a": Likelihood(-20.0, 10, 40), "b": Likelihood(-20.0, 25, 40)})
    assert found["a"] == pytest.approx(found["b"]) == pytest.approx(0.5)


def test_every_member_keeps_a_weight():
    found = perplexity_weights({"a": Likelihood(-20.0, 10, 40), "b": Likelihood(-math.inf, 10, 40)})
    assert found == {"a": 1.0, "b": pytest.approx(1e-9)}
    assert perplexity_weights({"a": Likelihood(-math.inf, 1, 4), "b": Likelihood(-math.inf, 1, 4)}) == {
        "a": 0.5,
        "b": 0.5,
    }


@pytest.mark.ray
def test_likelihoods_of_actors_are_those_of_members_in_this_process(ray_nodes):
    """Measured beside the model; what crosses is one number for each token."""
    with ray_nodes.load(EMBEDDED[:2]) as remote, shared_ensemble(EMBEDDED[:2]) as local:
        for prompt in (TEXT, QUESTION):
            wanted, found = local.prompt_likelihoods(prompt), remote.prompt_likelihoods(prompt)
            for name, own in wanted.items():
                assert (found[name].tokens, found[name].bytes) == (own.tokens, own.bytes)
                assert found[name].logprob == pytest.approx(own.logprob, rel=1e-5)
            one, other = (each.generate(prompt, max_tokens=8, weights="perplexity") for each in (remote, local))
            assert one.tokens == other.tokens
        executor, member = remote._session.worker._engine._executor, member_ids(remote)[0]
        before = executor.traffic(member)
        remote.prompt_likelihoods("The festival in Borfen is held in spring. " * 3)
        after = executor.traffic(member)
        assert after.calls - before.calls == 1
        assert after.received - before.received < 2000
