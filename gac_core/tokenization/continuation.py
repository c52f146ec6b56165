"""How a tokenizer cuts a text that continues another one."""

from __future__ import annotations

from itertools import groupby

from gac_core.tokenization.escaping import divided_spellings
from gac_core.tokenization.tokenizer import MemberTokenizer


def cut_continuation(tokenizer: MemberTokenizer, data: bytes) -> tuple[bytes, ...]:
    """Returns the tokens that a tokenizer cuts bytes into where they continue a text, as bytes.

    The ids of the text before them do not change: tokens never extend across the boundary. Spellings of control tokens
    are ordinary text. Bytes that are not UTF-8, and text that the tokenizer would change, are encoded context-free.

    Args:
        tokenizer: The tokenizer.
        data: The bytes.

    Raises:
        UnwritableTextError: No ids of this vocabulary spell these bytes.
    """
    ids: list[int] = []
    for invalid, chars in groupby(data.decode(errors="surrogateescape"), lambda char: "\udc80" <= char <= "\udcff"):
        run = "".join(chars)
        if invalid:
            ids += tokenizer.encode_bytes(run.encode(errors="surrogateescape"))
            continue
        for piece in divided_spellings(tokenizer, run):
            own = tokenizer.encode_continuation(piece)
            ids += tokenizer.encode_bytes(piece.encode()) if own is None else own
    return tuple(data for data in map(tokenizer.token_bytes.__getitem__, ids) if data is not None)
