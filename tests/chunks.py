"""Members of random models, and chunks that are sent until they are read."""

from __future__ import annotations

import torch
from architectures import random_model

from gac_core.executor.messages import Ask
from gac_core.model.chunk import Chunk
from gac_core.model.member import Member
from gac_core.tokenization.vocabulary import Alignment, UnionVocabulary


def member_of(name, tokenizer, **limits):
    return Member.from_model(random_model(name, tokenizer), tokenizer, "m", **limits)


def ask(member, request_id, ids, start=0, num_logits=1):
    """One chunk, as often as it takes to read all of it."""
    while True:
        (result,) = member.forward([Chunk(request_id, start, tuple(ids[start:]), num_logits)])
        if result.logits is not None:
            assert not isinstance(result.logits, Exception), result.logits
            return result


def logits(member: Member, ids, request_id="r") -> torch.Tensor:
    """The logits of all positions, computed as a prompt and three decode steps."""
    parts = [(0, ids[:-3]), *((start, ids[start : start + 1]) for start in range(len(ids) - 3, len(ids)))]
    results = [member.forward([Chunk(request_id, start, tuple(part), len(part))])[0] for start, part in parts]
    member.release(request_id)
    return torch.cat([result.logits for result in results])


def ask_of(member: Member, request_id: str = "r", ids=None, start: int = 0, **fields) -> Ask:
    """What is asked of a member that reads a text from some position on: the distribution at its end, or at others."""
    ids = tuple(IDS if ids is None else ids)
    union = UnionVocabulary([member.tokenizer])
    fields = {"ends": (len(ids),), "alignment": Alignment(union, member.tokenizer), **fields}
    return Ask(Chunk(request_id, start, ids[start:], len(ids) - fields["ends"][0] + 1), **fields)


IDS = [3 + (7 * index) % 50 for index in range(24)]
