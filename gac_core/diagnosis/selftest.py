"""A test from loading to an answer, of given models or of tiny random ones."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch

from gac_core.config import EnsembleConfig
from gac_core.ensemble import Ensemble
from gac_core.errors import GaCError
from gac_core.member_config import MemberConfig
from gac_core.model.member import Member

TOKENS = 4


@dataclass(frozen=True)
class SelfTest:
    """The outcome of the test.

    Attributes:
        members: The members that answered, or were to.
        ok: Whether they answered with 4 tokens, or with fewer and the end of text.
        seconds: From loading to the answer.
        text: The answer of given models; None otherwise.
        problem: Why there is none; None if there is one.
    """

    members: tuple[str, ...]
    ok: bool
    seconds: float
    text: str | None = None
    problem: str | None = None


def run_self_test(config: EnsembleConfig | None = None) -> SelfTest:
    """Generates 4 tokens greedily.

    Args:
        config: The ensemble. Default: two tiny models with random weights, made in memory.
    """
    began = time.perf_counter()
    names = ("random-1", "random-2") if config is None else tuple(config.names)
    try:
        with _random_ensemble(names) if config is None else Ensemble.from_config(config) as ensemble:
            text = ensemble.generate("Hello", max_tokens=TOKENS, temperature=0.0).text
    except GaCError as error:
        return SelfTest(names, False, time.perf_counter() - began, problem=str(error))
    return SelfTest(names, True, time.perf_counter() - began, None if config is None else text)


def _random_ensemble(names: tuple[str, ...]) -> Ensemble:
    """An ensemble of models with random weights, whose tokenizers have different vocabularies."""
    tables = ((), (("l", "l"), ("e", "ll")))
    members = [_random_member(name, merges) for name, merges in zip(names, tables, strict=True)]
    return Ensemble(members, EnsembleConfig(tuple(MemberConfig(name) for name in names), cache_gib=0.01))


def _random_member(name: str, merges: tuple[tuple[str, str], ...]) -> Member:
    """A member whose tokenizer has a token for each byte, one for each merge, and an end of text."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = [*sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(merge) for merge in merges)]
    backend = Tokenizer(models.BPE({word: index for index, word in enumerate(words)}, list(merges)))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    # transformers leaves it untyped.
    wrap: Any = PreTrainedTokenizerFast
    tokenizer = wrap(tokenizer_object=backend, eos_token="<end>", bos_token="<end>")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=64,
        eos_token_id=tokenizer.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    return Member.from_model(model, tokenizer, name)
