"""An engine made of loaded members: executor, poll, commit rules and decoder."""

from __future__ import annotations

from collections.abc import Sequence

from gac_core.config import EnsembleConfig
from gac_core.decoding.commit import Writer, make_commit
from gac_core.decoding.decoder import Decoder, StepDecoder
from gac_core.decoding.drafting import PromptLookup
from gac_core.decoding.poll import Poll
from gac_core.decoding.speculation import Drafting, SpeculativeDecoder
from gac_core.engine.engine import Engine
from gac_core.executor.local import LocalExecutor
from gac_core.model.member import Member
from gac_core.tokenization.vocabulary import Alignment, UnionVocabulary


def assemble(members: Sequence[Member], union: UnionVocabulary, config: EnsembleConfig) -> Engine:
    """Returns the engine of an ensemble.

    Args:
        members: Loaded members, in the order of ``config.members``.
        union: Their union vocabulary.
        config: Weights and limits.
    """
    executor = LocalExecutor(members)
    alignments = [Alignment(union, member.tokenizer, member.device) for member in members]
    poll = Poll(executor, alignments, config.names)
    weights = [member.weight for member in config.members]
    commits = [make_commit(config.commit, member.tokenizer) for member in members]
    writer = Writer(commits, [member.context for member in members])
    decoder: Decoder = StepDecoder(poll, union, weights, config.names, writer)
    if config.drafts:
        drafting = _drafting(members, weights, config.drafts)
        decoder = SpeculativeDecoder(poll, union, weights, config.names, writer, drafting)
    return Engine(executor, decoder, config.max_batch_size)


def _drafting(members: Sequence[Member], weights: Sequence[float], drafts: Sequence[str]) -> Drafting:
    return Drafting(
        lookup=PromptLookup([member.tokenizer for member in members], list(weights)) if "lookup" in drafts else None,
        ahead="ahead" in drafts,
        times=[member.times for member in members],
    )
