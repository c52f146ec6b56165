"""A lower bound on the number of tokens of a text, computed from its bytes, and the longest text that is encoded.

Encoding takes about a second and 100 MB of memory per megabyte. Text that cannot fit a context is rejected before.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections.abc import Iterable
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from gac_core.errors import RequestError
from gac_core.tokenization.token_bytes import BYTE_TOKEN, SPACE
from gac_core.tokenization.tokenizer import MemberTokenizer

MAX_BYTES = 8 * 2**20
"""The longest text that is encoded or counted, in bytes of UTF-8: about two million tokens of prose."""

_UNASSIGNED = "\U000e0fff"
# NFC does not change ASCII characters that no other character follows.
_NOT_PLAIN = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")
# Components of tokenizers that neither drop nor change characters, except for the spelling of spaces.
_KEEPING = ("ByteLevel", "Metaspace", "Digits", "Split", "Punctuation", "Prepend", "Sequence", "Replace", "NFC")


def check_bytes(texts: Iterable[str], what: str = "the prompt") -> None:
    """Raises if texts have more than `MAX_BYTES` bytes together.

    Args:
        texts: The texts.
        what: What the texts are, for the error. Default ``"the prompt"``.

    Raises:
        RequestError: They are too long.
    """
    total = 0
    for text in texts:
        # Longer texts are not converted to bytes.
        total += len(text) if len(text) > MAX_BYTES else _size(text)
        if total > MAX_BYTES:
            raise RequestError(
                f"{what} has more than {MAX_BYTES} bytes ({MAX_BYTES // 2**20} MiB), the longest text that is "
                "encoded; split it, or give fewer or shorter passages"
            )


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class _ByteWeights:
    """A weight for each byte value; the weights of a text's bytes add up to at most its number of tokens.

    The weight of a byte is 1 divided by the length of the longest token that contains it, so that the bytes of any
    token weigh at most 1. Bytes that the tokenizer may drop, or merge into a token for unknown text, have weight 0.

    Attributes:
        weights: Shape ``[256]``; None where no bound can be computed.
    """

    def __init__(self, tokenizer: MemberTokenizer) -> None:
        self.weights: NDArray[np.float64] | None = None
        added = tokenizer.hf.added_tokens_decoder.values()
        self._stripping = any(token.lstrip or token.rstrip for token in added)
        parts = _parts(tokenizer.hf)
        if parts is None:
            return
        self._composing = "NFC" in parts
        self._marked = not tokenizer.byte_level
        pieces = {data for data in tokenizer.token_bytes if data}
        longest = _longest([*pieces, *(str(token.content).encode() for token in added)])
        known = _known_bytes(tokenizer)
        self.weights = np.where(known & (longest > 0), 1 / np.maximum(longest, 1), 0.0)

    def least(self, text: str) -> int:
        """Returns a lower bound on the number of tokens of a text; 0 where none can be computed."""
        if self.weights is None:
            return 0
        if self._marked:
            text = text.replace(SPACE, " ")
        if self._stripping:
            text = "".join(text.split())
        if self._composing and not text.isascii() and not unicodedata.is_normalized("NFC", text):
            text = _NOT_PLAIN.sub("", text)
        counts = np.bincount(np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8), minlength=256)
        return int(counts @ self.weights)


def _parts(hf: Any) -> set[str] | None:
    """The types of a tokenizer's components; None if one may drop or shorten text, or is unknown."""
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ not in ("BPE", "Unigram"):
        return None
    kinds: set[str] = set()
    waiting = [json.loads(part.__getstate__()) for part in (backend.normalizer, backend.pre_tokenizer) if part]
    while waiting:
        part = waiting.pop()
        kind = part.get("type")
        spaces = kind != "Replace" or (part.get("pattern") == {"String": " "} and part.get("content") == SPACE)
        kept = part.get("behavior") != "Removed" and part.get("replacement", SPACE) == SPACE
        if kind not in _KEEPING or not spaces or not kept:
            return None
        kinds.add(kind)
        waiting += part.get("normalizers", []) + part.get("pretokenizers", [])
    return kinds


def _longest(pieces: list[bytes]) -> NDArray[np.int64]:
    """The length of the longest token that contains each byte value, shape ``[256]``."""
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    longest = np.zeros(256, dtype=np.int64)
    np.maximum.at(longest, np.frombuffer(b"".join(pieces), dtype=np.uint8), np.repeat(lengths, lengths))
    return longest


def _known_bytes(tokenizer: MemberTokenizer) -> NDArray[np.bool_]:
    """Which byte values have a token of their own and are never replaced by a token for unknown text."""
    known = np.zeros(256, dtype=bool)
    ids = tokenizer.encode_rendered(_UNASSIGNED)
    fallback = sum(bool(BYTE_TOKEN.fullmatch(str(p))) for p in tokenizer.hf.convert_ids_to_tokens(ids)) == 4
    added = tokenizer.hf.added_tokens_decoder
    single = [i for i, data in enumerate(tokenizer.token_bytes) if data and len(data) == 1 and i not in added]
    for index, piece in zip(single, tokenizer.hf.convert_ids_to_tokens(single), strict=True):
        if fallback or not BYTE_TOKEN.fullmatch(str(piece)):
            known[(tokenizer.token_bytes[index] or b"")[0]] = True
    if not tokenizer.byte_level and not (fallback and known[128:245].sum() >= 115):
        known[128:] = False
    return known


_KNOWN: WeakKeyDictionary[MemberTokenizer, _ByteWeights] = WeakKeyDictionary()


def min_tokens(tokenizer: MemberTokenizer, text: str) -> int:
    """Returns a lower bound on the number of tokens of a text, in milliseconds.

    0 where the bytes do not determine one, because the tokenizer may drop, shorten or merge characters.
    """
    weights = _KNOWN.get(tokenizer)
    if weights is None:
        weights = _KNOWN[tokenizer] = _ByteWeights(tokenizer)
    return weights.least(text)
