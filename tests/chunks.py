"""Members of random models, and chunks that are sent until they are read."""

from __future__ import annotations

from architectures import random_model

from gac_core.model.chunk import Chunk
from gac_core.model.member import Member


def member_of(name, tokenizer, **limits):
    return Member.from_model(random_model(name, tokenizer), tokenizer, "m", **limits)


def ask(member, request_id, ids, start=0, num_logits=1):
    """One chunk, as often as it takes to read all of it."""
    while True:
        (result,) = member.forward([Chunk(request_id, start, tuple(ids[start:]), num_logits)])
        if result.logits is not None:
            assert not isinstance(result.logits, Exception), result.logits
            return result
