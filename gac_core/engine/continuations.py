"""Texts that are scored: a given continuation as union tokens, and where a member's text begins."""

from __future__ import annotations

from collections.abc import Sequence, Set
from typing import cast

from gac_core.checks import check_list
from gac_core.engine.continuation_text import Continuation, encoded
from gac_core.errors import EmptyPromptError, RequestError, quote
from gac_core.tokenization.continuation import cut_continuation
from gac_core.tokenization.lengths import MAX_BYTES
from gac_core.tokenization.tokenizer import MemberTokenizer
from gac_core.tokenization.vocabulary import UnionVocabulary


def given_tokens(continuation: Continuation, tokenizer: MemberTokenizer, union: UnionVocabulary) -> tuple[bytes, ...]:
    """Returns the union tokens of a continuation.

    Args:
        continuation: A text, which the tokenizer cuts; or union tokens, which are taken as they are.
        tokenizer: The gate's tokenizer.
        union: The union vocabulary.

    Raises:
        RequestError: It is empty, too long, or has tokens that the union does not have.
        UnwritableTextError: The tokenizer's vocabulary cannot represent it.
    """
    if isinstance(continuation, (str, bytes)):
        data = continuation if isinstance(continuation, bytes) else encoded(continuation)
        if len(data) > MAX_BYTES:
            raise RequestError(f"the continuation has more than {MAX_BYTES} bytes; score it in parts")
        tokens = cut_continuation(tokenizer, data)
    else:
        if isinstance(continuation, Set):
            raise RequestError(f"the continuation must have an order, not {quote(continuation)}; give a list of tokens")
        remedy = "give a string, bytes, or such a list"
        tokens = tuple(
            cast(Sequence[bytes], check_list(RequestError, "continuation", continuation, "union tokens", remedy))
        )
        unknown = next((each for each in tokens if not isinstance(each, bytes) or each not in union.ids), None)
        if unknown is not None:
            raise RequestError(
                f"continuation contains {quote(unknown)}, which is no token of any member; give a string, which is cut "
                "into tokens, or tokens such as those of RequestOutput.tokens"
            )
    if not tokens:
        raise RequestError(f"the continuation is empty ({quote(continuation)}); give at least one character")
    return tokens


def opening_ids(tokenizer: MemberTokenizer) -> list[int]:
    """Returns the ids that a member's text begins with: what its tokenizer adds, else its BOS, else its EOS.

    Raises:
        EmptyPromptError: The tokenizer has none of them.
    """
    before, _ = tokenizer.added_around
    if before:
        return list(before)
    for index in (tokenizer.hf.bos_token_id, tokenizer.hf.eos_token_id):
        if index is not None and index < tokenizer.rows:
            return [int(index)]
    raise EmptyPromptError(
        f"the prompt is empty, and the tokenizer of member {tokenizer.name!r} has neither a BOS nor an EOS token to "
        "begin its text with; give some visible text"
    )
