"""Assembles engines and sessions, and the members of an ensemble as decoding needs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar
from weakref import WeakValueDictionary

import torch

from gac_core.config import EnsembleConfig
from gac_core.decoding.collector import DistributionCollector
from gac_core.decoding.commit import make_commit
from gac_core.decoding.decoder import Decoder
from gac_core.decoding.drafting import StepCosts
from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.decoding.lookup import PromptLookup
from gac_core.decoding.run_ahead import RunAhead
from gac_core.engine.engine import Engine
from gac_core.events import Listener, ignore
from gac_core.executor.base import Executor, ExecutorMember
from gac_core.grammar.compiler import Compiler
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import Alignment, UnionVocabulary

# What ensembles of the same members share while one of them uses it.
_unions: WeakValueDictionary[tuple[MemberTokenizer, ...], UnionVocabulary] = WeakValueDictionary()
_alignments: WeakValueDictionary[tuple[UnionVocabulary, MemberTokenizer, torch.device], Alignment] = (
    WeakValueDictionary()
)
_compilers: WeakValueDictionary[UnionVocabulary, Compiler] = WeakValueDictionary()


K = TypeVar("K")
V = TypeVar("V")


def _shared(table: WeakValueDictionary[K, V], key: K, create: Callable[[], V]) -> V:
    """Returns the value of a key, which is created if nothing refers to one."""
    value = table.get(key)
    if value is None:
        value = table[key] = create()
    return value


def union_of(tokenizers: Sequence[MemberTokenizer]) -> UnionVocabulary:
    """Returns the union vocabulary of some tokenizers."""
    return _shared(_unions, tuple(tokenizers), lambda: UnionVocabulary(tokenizers))


def alignment_of(union: UnionVocabulary, tokenizer: MemberTokenizer, device: torch.device) -> Alignment:
    """Returns the alignment of a member with a union vocabulary, on the device of its logits."""
    return _shared(_alignments, (union, tokenizer, device), lambda: Alignment(union, tokenizer, device))


def compiler_of(union: UnionVocabulary) -> Compiler:
    """Returns the compiler of grammars for a union vocabulary."""
    return _shared(_compilers, union, lambda: Compiler(union))


def ensemble_members(
    members: Sequence[ExecutorMember], union: UnionVocabulary, config: EnsembleConfig
) -> list[EnsembleMember]:
    """Returns the members of an ensemble.

    Args:
        members: The loaded members, in the order of ``config.members``.
        union: Their union vocabulary.
        config: Names, temperatures and commit rule.
    """
    return [
        EnsembleMember(
            name=settings.called,
            member_id=member.member_id,
            tokenizer=member.tokenizer,
            alignment=alignment_of(union, member.tokenizer, member.device),
            commit=make_commit(config.commit, member.tokenizer),
            context=member.context,
            size=member.size,
            times=member.times,
            runs_on=member.runs_on,
            temperature=settings.temperature,
            vision=member.vision,
            keeps_documents=member.keeps_documents,
        )
        for member, settings in zip(members, config.members, strict=True)
    ]


def new_engine(executor: Executor, listener: Listener = ignore) -> Engine:
    """Returns an engine whose decoder drafts by prompt lookup and by running ahead, where requests allow it.

    Args:
        executor: Runs the members.
        listener: Receives events of steps and requests. Default: does nothing.
    """
    collector = DistributionCollector(executor)
    costs = StepCosts()
    decoder = Decoder(collector, PromptLookup(costs), RunAhead(collector, costs), costs, listener)
    return Engine(executor, decoder, listener)
