"""The bytes that each token id decodes to.

Byte-level and SentencePiece tokenizers are told apart by encoding a probe text, not by class or file name. Tables are
cached on disk (`table_cache`).
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from gac_core.tokenization import table_cache

BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""A byte token of a SentencePiece vocabulary."""

SPACE = "\u2581"
"""The character that stands for a space in a SentencePiece vocabulary."""

# Part of the cache key. Increase whenever the same tokenizer would get another table.
_TABLE_VERSION = "token bytes 2"
_PROBE = "a \u00e9t\u00e9 \u6f22 b"


def _byte_alphabet() -> dict[str, int]:
    """The 256 printable characters of byte-level BPE (GPT-2), with the byte that each stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(value): value for value in printable}
    others = [value for value in range(256) if value not in set(printable)]
    table.update({chr(0x100 + index): value for index, value in enumerate(others)})
    return table


CHAR_TO_BYTE = _byte_alphabet()
BYTE_TO_CHAR = {value: char for char, value in CHAR_TO_BYTE.items()}


@dataclass(frozen=True)
class TokenTable:
    """The ids of one tokenizer.

    Attributes:
        byte_level: Whether tokens are spelled in the alphabet of byte-level BPE; else as in SentencePiece.
        token_bytes: Per id the bytes it decodes to; None for control tokens and padding rows.
        fingerprint: Hash of the tokens and their bytes, independent of where the tokenizer was loaded from.
        added: Added tokens by id (``AddedToken`` of the tokenizers library).
        special: Ids of the special tokens.
    """

    byte_level: bool
    token_bytes: list[bytes | None]
    fingerprint: str
    added: dict[int, Any]
    special: frozenset[int]


def read_table(tokenizer: Any, rows: int) -> TokenTable:
    """Returns the table of a tokenizer, from the cache if it is there.

    Args:
        tokenizer: The Hugging Face tokenizer.
        rows: Rows of the model's output head: the length of the table.
    """
    known = min(rows, len(tokenizer))
    pieces = tokenizer.convert_ids_to_tokens(list(range(known)))
    # Ids at or past len(tokenizer) are mostly padding rows, but a vocabulary may have gaps.
    beyond = {i: token for token, i in tokenizer.get_added_vocab().items() if known <= i < rows}
    pieces += [beyond.get(i) for i in range(known, rows)]
    added = {int(i): token for i, token in tokenizer.added_tokens_decoder.items()}
    special = frozenset(i for i, token in added.items() if token.special) | frozenset(tokenizer.all_special_ids)
    byte_level = is_byte_level(tokenizer)
    listed = [f"{i} {token.content} {token.special}" for i, token in sorted(added.items())]
    facts = [_TABLE_VERSION, str(byte_level), *listed, "control", *map(str, sorted(special)), "pieces"]
    # Hashing one joined string is a hundred times faster than hashing each piece.
    key = table_cache.fingerprint([*facts, "\x00".join("\x01" if p is None else p for p in pieces)])
    stored = table_cache.load(key)
    if stored is not None:
        return TokenTable(byte_level, table_cache.unpack(stored), key, added, special)
    table: list[bytes | None] = []
    for index, piece in enumerate(pieces):
        if piece is None or index in special:
            table.append(None)
        elif index in added:
            table.append(_bytes_of_added(tokenizer, index, str(added[index].content), byte_level) or None)
        else:
            table.append(_bytes_of_piece(piece, byte_level) or None)
    table_cache.store(key, table_cache.pack(table))
    return TokenTable(byte_level, table, key, added, special)


def is_byte_level(tokenizer: Any) -> bool:
    """Returns whether a tokenizer spells its tokens in the alphabet of byte-level BPE."""
    text = "".join(tokenizer.convert_ids_to_tokens(tokenizer.encode(_PROBE, add_special_tokens=False)))
    if not all(char in CHAR_TO_BYTE for char in text):
        return False
    return bytes(CHAR_TO_BYTE[char] for char in text).strip() == _PROBE.encode()


def _bytes_of_piece(piece: str, byte_level: bool) -> bytes:
    """The bytes of an ordinary token of the vocabulary."""
    if byte_level:
        if all(char in CHAR_TO_BYTE for char in piece):
            return bytes(CHAR_TO_BYTE[char] for char in piece)
        return piece.encode()
    match = BYTE_TOKEN.fullmatch(piece)
    return bytes([int(match.group(1), 16)]) if match else piece.replace(SPACE, " ").encode()


def _bytes_of_added(tokenizer: Any, index: int, content: str, byte_level: bool) -> bytes:
    """The bytes of an added token: its content, unless the tokenizer decodes it like an ordinary token."""
    literal, spelled = content.encode(), _bytes_of_piece(content, byte_level)
    if spelled == literal:
        return literal
    anchor = tokenizer.encode("a", add_special_tokens=False)
    before, whole = (tokenizer.decode(ids, clean_up_tokenization_spaces=False) for ids in (anchor, [*anchor, index]))
    return spelled if whole == before + spelled.decode(errors="replace") else literal
