"""A member's own temperature: divides its logits after the repetition penalty, wherever the model runs."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from chunks import IDS, ask_of, member_of
from compact import compactly
from conftest import EMBEDDED, pair

from gac_core import ConfigError, Ensemble, EnsembleConfig, MemberConfig, default_pool
from gac_core.executor.evaluator import Evaluator, penalise_repetition, scale_logits
from gac_core.executor.ray import wire
from gac_core.executor.ray.wire import AskMessage
from gac_core.model.member import Member

PROMPT = "In which town is the Torno Bridge?"


def answers(temperatures, *, compact=False, weights=(1.0, 1.0), **asked):
    """Answers of the first embedded members, with a temperature each."""
    members = [
        MemberConfig(folder, weight=weight, temperature=temperature, dtype="float32")
        for folder, weight, temperature in zip(EMBEDDED, weights, temperatures, strict=False)
    ]
    loaded = [Member.from_model(*pair(member.model), member.called) for member in members]
    config = EnsembleConfig(tuple(members))
    with compactly() if compact else torch.no_grad(), Ensemble(loaded, config) as ensemble:
        return ensemble.generate(PROMPT, max_tokens=8, token_stats=not compact, **asked)


def test_a_temperature_divides_logits_after_the_penalty(tokenizer):
    member = member_of("llama", tokenizer)
    ask = ask_of(member, repetition_penalty=1.7, temperature=2.5)
    (answer,) = Evaluator(member).forward([ask])
    with torch.no_grad():
        logits = member._runner._model(torch.tensor([IDS]), use_cache=False).logits[0, -1]
    penalised = penalise_repetition(logits, torch.tensor(sorted(set(IDS))), 1.7)
    torch.testing.assert_close(answer.result, ask.alignment.align(penalised[None] / 2.5), atol=1e-6, rtol=1e-4)


def test_a_temperature_of_one_changes_no_bit(tokenizer):
    logits = torch.randn(3, 9).bfloat16()
    assert scale_logits(logits, 1.0) is logits
    assert scale_logits(logits, 2.0).dtype == torch.float32
    assert [each.confidence for each in answers((1.0, 1.0)).token_stats] == [
        each.confidence for each in answers((1, 1)).token_stats
    ]


def test_flatter_members_are_less_confident_and_choose_the_same_tokens_alone():
    plain, flat = (answers((t,), weights=(1.0,)) for t in (1.0, 3.0))
    assert plain.tokens == flat.tokens
    pairs = zip(plain.token_stats, flat.token_stats, strict=True)
    assert all(before.confidence > after.confidence for before, after in pairs)


@pytest.mark.parametrize("compact", [False, True])
def test_a_very_flat_member_leaves_the_choice_to_the_other(compact):
    """A member whose distribution is uniform adds the same to every token that it has."""
    alone = answers((1.0,), weights=(1.0,))
    assert answers((1.0, 1e5), compact=compact).tokens == alone.tokens


def test_an_ask_arrives_with_its_temperature(tokenizer):
    ask = ask_of(member_of("llama", tokenizer), temperature=0.7)
    found = wire.decode([wire.encode(AskMessage.of(ask, None))]).ask(ask.alignment)
    assert found.temperature == 0.7


def test_members_that_differ_in_temperature_share_weights_and_cache():
    one, other = (EnsembleConfig((MemberConfig(EMBEDDED[0], temperature=value),)) for value in (1.0, 2.0))
    with default_pool().acquire(one) as first, default_pool().acquire(other) as second:
        assert first.members[0].member_id == second.members[0].member_id


@pytest.mark.parametrize("value", [0, -1.0, float("nan"), True, "1"])
def test_wrong_temperatures_are_refused(value):
    with pytest.raises(ConfigError, match="the temperature of member 'ash' must be"):
        MemberConfig(EMBEDDED[0], temperature=value)


def test_a_temperature_goes_through_yaml(tmp_path):
    config = EnsembleConfig((MemberConfig("a", temperature=1.4), MemberConfig("b")))
    path = tmp_path / "e.yaml"
    path.write_text(config.to_yaml())
    assert EnsembleConfig.from_yaml(path) == config
    assert "temperature: 1.4" in path.read_text()
    assert replace(config.members[0], temperature=1.0) != config.members[0]
