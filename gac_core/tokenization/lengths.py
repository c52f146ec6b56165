"""How many tokens a text has at least, computed from its bytes; and the longest text that is encoded at all.

Encoding costs about a second and 100 MB of memory per megabyte. A text that cannot fit is refused before that.
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
from gac_core.tokenization.tokenizer import MemberTokenizer

MAX_BYTES = 8 * 2**20
"""The longest text, in bytes of UTF-8, that is encoded or counted: about two million tokens of prose."""

_SPACE = "\u2581"
_UNASSIGNED = "\U000e0fff"
_BYTE_TOKEN = re.compile(r"<0x[0-9A-Fa-f]{2}>")
# Under NFC, ASCII that no other character follows stays as it is.
_NOT_PLAIN = re.compile(r"[\x00-\x7f]?[^\x00-\x7f]+")
# Parts of tokenizers that change no character, apart from how spaces are written, and drop none.
_KEEPING = ("ByteLevel", "Metaspace", "Digits", "Split", "Punctuation", "Prepend", "Sequence", "Replace", "NFC")


def check_bytes(texts: Iterable[str], what: str = "the prompt") -> None:
    """Raises if texts are longer than `MAX_BYTES` together.

    Raises:
        RequestError: They are.
    """
    total = 0
    for text in texts:
        # Far longer ones are not even converted to bytes.
        total += len(text) if len(text) > MAX_BYTES else _size(text)
        if total > MAX_BYTES:
            raise RequestError(
                f"{what} has more than {MAX_BYTES} bytes ({MAX_BYTES // 2**20} MiB), the longest text that is "
                "encoded; divide it, or give fewer or smaller passages"
            )


def _size(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "surrogatepass"))


class _Weights:
    """A share of a token for each byte, such that no token holds more than one token's worth of bytes.

    A byte's share is one over the length of the longest token that holds it. The shares of a text's bytes then add up
    to no more than its number of tokens, however the tokenizer cuts it. Bytes that the tokenizer may drop, or join into
    one token for unknown text, have a share of 0.
    """

    def __init__(self, tokenizer: MemberTokenizer) -> None:
        self.shares: NDArray[np.float64] | None = None
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
        self.shares = np.where(known & (longest > 0), 1 / np.maximum(longest, 1), 0.0)

    def least(self, text: str) -> int:
        """Returns a number of tokens that the text has at least; 0 where nothing is known."""
        if self.shares is None:
            return 0
        if self._marked:
            text = text.replace(_SPACE, " ")
        if self._stripping:
            text = "".join(text.split())
        if self._composing and not text.isascii() and not unicodedata.is_normalized("NFC", text):
            text = _NOT_PLAIN.sub("", text)
        counts = np.bincount(np.frombuffer(text.encode("utf-8", "replace"), dtype=np.uint8), minlength=256)
        return int(counts @ self.shares)


def _parts(hf: Any) -> set[str] | None:
    """The kinds of parts of a tokenizer; None where one may drop or shorten text, or is not known."""
    backend = getattr(hf, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ not in ("BPE", "Unigram"):
        return None
    kinds: set[str] = set()
    waiting = [json.loads(part.__getstate__()) for part in (backend.normalizer, backend.pre_tokenizer) if part]
    while waiting:
        part = waiting.pop()
        kind = part.get("type")
        spaces = kind != "Replace" or (part.get("pattern") == {"String": " "} and part.get("content") == _SPACE)
        kept = part.get("behavior") != "Removed" and part.get("replacement", _SPACE) == _SPACE
        if kind not in _KEEPING or not spaces or not kept:
            return None
        kinds.add(kind)
        waiting += part.get("normalizers", []) + part.get("pretokenizers", [])
    return kinds


def _longest(pieces: list[bytes]) -> NDArray[np.int64]:
    """The length of the longest piece that holds a byte, for each byte."""
    lengths = np.array([len(piece) for piece in pieces], dtype=np.int64)
    longest = np.zeros(256, dtype=np.int64)
    np.maximum.at(longest, np.frombuffer(b"".join(pieces), dtype=np.uint8), np.repeat(lengths, lengths))
    return longest


def _known_bytes(tokenizer: MemberTokenizer) -> NDArray[np.bool_]:
    """Which bytes have a token of their own, so that no text for unknown characters takes their place."""
    known = np.zeros(256, dtype=bool)
    ids = tokenizer.encode_rendered(_UNASSIGNED)
    fallback = sum(bool(_BYTE_TOKEN.fullmatch(str(p))) for p in tokenizer.hf.convert_ids_to_tokens(ids)) == 4
    added = tokenizer.hf.added_tokens_decoder
    single = [i for i, data in enumerate(tokenizer.token_bytes) if data and len(data) == 1 and i not in added]
    for index, piece in zip(single, tokenizer.hf.convert_ids_to_tokens(single), strict=True):
        if fallback or not _BYTE_TOKEN.fullmatch(str(piece)):
            known[(tokenizer.token_bytes[index] or b"")[0]] = True
    if not tokenizer.byte_level and not (fallback and known[128:245].sum() >= 115):
        known[128:] = False
    return known


_KNOWN: WeakKeyDictionary[MemberTokenizer, _Weights] = WeakKeyDictionary()


def min_tokens(tokenizer: MemberTokenizer, text: str) -> int:
    """Returns how many tokens a text has at least, in no time to speak of; never more than it has.

    0 where nothing can be known from bytes: the tokenizer drops, shortens or joins characters in a way of its own.
    """
    weights = _KNOWN.get(tokenizer)
    if weights is None:
        weights = _KNOWN[tokenizer] = _Weights(tokenizer)
    return weights.least(text)
