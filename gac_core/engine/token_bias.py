"""From the penalties and the bias of `SamplingParams` to factors of union tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from gac_core.decoding.ensemble_member import EnsembleMember
from gac_core.decoding.logit_adjustment import LogitAdjustment
from gac_core.errors import RequestError, quote
from gac_core.sampling import SamplingParams
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary


def logit_adjustment(
    params: SamplingParams, gate: EnsembleMember, members: Sequence[EnsembleMember], union: UnionVocabulary
) -> LogitAdjustment | None:
    """Returns the penalties and bias of a request; None without any.

    Args:
        params: The request's parameters.
        gate: Its gate, whose ids the integers of ``logit_bias`` are.
        members: Its participants. A token that none of them has cannot be selected, so that its bias is dropped.
        union: The union vocabulary.

    Raises:
        RequestError: A key is no token, or two keys with different biases are the same token.
    """
    given = _by_token(params.logit_bias or {}, gate.tokenizer, union)
    alignments = [member.alignment for member in members]
    bias = {token: value for token, value in given.items() if value and any(own.has(token) for own in alignments)}
    if not (bias or params.presence_penalty or params.frequency_penalty):
        return None
    return LogitAdjustment(union, bias, params.presence_penalty, params.frequency_penalty)


def _by_token(
    logit_bias: Mapping[int | str | bytes, float], tokenizer: MemberTokenizer, union: UnionVocabulary
) -> dict[int, float]:
    """Returns the biases by union id."""
    biases: dict[int, float] = {}
    for key, bias in logit_bias.items():
        token = _of_id(key, tokenizer, union) if isinstance(key, int) else _of_text(key, union)
        if biases.setdefault(token, bias) != bias:
            raise RequestError(
                f"logit_bias has two values for the token {quote(union.data(token) or 'end of text')}: "
                f"{biases[token]:g} and, by the key {quote(key)}, {bias:g}; give it one"
            )
    return biases


def _of_id(key: int, tokenizer: MemberTokenizer, union: UnionVocabulary) -> int:
    if key in tokenizer.end_ids:
        return union.end_id
    data = tokenizer.token_bytes[key] if 0 <= key < len(tokenizer.token_bytes) else None
    if not data:
        kind = "a control token" if 0 <= key < len(tokenizer.token_bytes) else "no token"
        raise RequestError(
            f"logit_bias has the key {quote(key)}, which is {kind} of the gate {quote(tokenizer.name)}; give an id "
            "that Ensemble.encode (over HTTP: /tokenize) returns, or in Python the token as a string or bytes"
        )
    return union.ids[data]


def _of_text(key: str | bytes, union: UnionVocabulary) -> int:
    found = union.ids.get(key.encode() if isinstance(key, str) else key)
    if found is None:
        raise RequestError(
            f"logit_bias has the key {quote(key)}, which is not exactly one token of a member; give each of its tokens "
            "(Ensemble.cut returns those of the gate), with a leading space where a word has one"
        )
    return found
