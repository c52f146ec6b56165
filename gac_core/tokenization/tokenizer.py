"""A Hugging Face tokenizer seen as bytes: which bytes each id writes, which ids end a text, how bytes become ids.

How a tokenizer spells its tokens is judged by the ids it gives for a probe text, never by its class or file name.
Knows nothing of models, of other members or of the union vocabulary.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Any

from gac_core.errors import RequestError, UnwritableTextError
from gac_core.templates.rendering import try_template
from gac_core.tokenization import table_cache

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE = "\u2581"
# Goes into the cache's keys: grows whenever the same tokenizer would get another table.
_TABLE_VERSION = "token bytes 2"
# Texts of more characters are encoded one at a time: each takes a hundred times its size of memory.
_LARGE = 2**18
_LARGE_LOCK = threading.Lock()
_PROBE = "a \u00e9t\u00e9 \u6f22 b"


def _byte_alphabet() -> dict[str, int]:
    """The printable stand-ins of byte-level BPE (GPT-2): each of 256 characters, and the byte it stands for."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    table = {chr(value): value for value in printable}
    others = [value for value in range(256) if value not in set(printable)]
    table.update({chr(0x100 + index): value for index, value in enumerate(others)})
    return table


_CHAR_TO_BYTE = _byte_alphabet()
_BYTE_TO_CHAR = {value: char for char, value in _CHAR_TO_BYTE.items()}


class MemberTokenizer:
    """One member's tokenizer, as bytes.

    Args:
        tokenizer: A loaded Hugging Face tokenizer.
        name: The member's name, for errors.
        end_ids: Ids that end a text besides the tokenizer's own ``eos_token_id`` (those of the generation config).
        rows: Rows of the model's output head. Ids at or past it cannot be written; default: as many as the tokenizer.

    Attributes:
        control_tokens: Per id of a control token its spelling: special tokens, and added tokens that end a text.
        fingerprint: A key of its tokens and their bytes, the same wherever it was loaded from.
        token_bytes: Per id the bytes it writes, or None where it writes no text (control tokens, padding rows).
        end_ids: Every id that ends this member's text: the tokenizer's, the generation config's, and the control token
            that its chat template puts after an assistant's turn.
    """

    def __init__(self, tokenizer: Any, name: str, end_ids: Iterable[int] = (), rows: int | None = None) -> None:
        self.hf = tokenizer
        # Fast tokenizers encode in several threads at once, without Python's lock; slow ones are not made for it.
        self._lock: AbstractContextManager[Any] = (
            nullcontext() if getattr(tokenizer, "is_fast", False) else threading.RLock()
        )
        self.name = name
        self.rows = max(i + 1 for i in tokenizer.get_vocab().values()) if rows is None else rows
        self._written: dict[bytes, tuple[int, ...]] = {}
        self._added = {int(i): token for i, token in tokenizer.added_tokens_decoder.items()}
        self._control = {i for i, token in self._added.items() if token.special} | set(tokenizer.all_special_ids)
        self.byte_level = self._spells_with_byte_alphabet()
        self.token_bytes, self.fingerprint = self._all_token_bytes()
        ends = {i for i in (tokenizer.eos_token_id, *end_ids) if i is not None}
        turn_end = self._end_of_turn()
        self.end_ids = frozenset(ends if turn_end is None else ends | {turn_end})
        for index in self.end_ids:
            if index < len(self.token_bytes):
                self.token_bytes[index] = None
        self.control_tokens = {
            i: self._added[i].content for i in sorted(self._added) if i in self._control | self.end_ids
        }

    # ---- ids -> bytes

    def decode(self, ids: Sequence[int]) -> bytes:
        """Returns the bytes that these ids write; control tokens write none."""
        return b"".join(self.token_bytes[i] or b"" for i in ids)

    def _all_token_bytes(self) -> tuple[list[bytes | None], str]:
        """The bytes of each id, from the cache if they are there, and the fingerprint of what they depend on."""
        known = len(self.hf) if self.rows > len(self.hf) else self.rows
        pieces = self.hf.convert_ids_to_tokens(list(range(known)))
        # Ids past the tokenizer's length: mostly padding rows, which have no piece, but a vocabulary may have gaps.
        beyond = {i: token for token, i in self.hf.get_added_vocab().items() if known <= i < self.rows}
        pieces += [beyond.get(i) for i in range(known, self.rows)]
        added = [f"{i} {token.content} {token.special}" for i, token in sorted(self._added.items())]
        control = [str(i) for i in sorted(self._control)]
        facts = [_TABLE_VERSION, str(self.byte_level), *added, "control", *control, "pieces"]
        # One long string: joined it is a hundred times faster to hash than piece by piece.
        key = table_cache.fingerprint([*facts, "\x00".join("\x01" if p is None else p for p in pieces)])
        stored = table_cache.load(key)
        if stored is not None:
            return table_cache.unpack(stored), key
        table = [self._bytes_of(index, piece) for index, piece in enumerate(pieces)]
        table_cache.store(key, table_cache.pack(table))
        return table, key

    def _bytes_of(self, index: int, piece: str | None) -> bytes | None:
        if piece is None or index in self._control:
            return None
        if index in self._added:
            return self._bytes_of_added(index) or None
        return self._spelled(piece) or None

    def _spelled(self, piece: str) -> bytes:
        """The bytes that an ordinary piece of the vocabulary stands for."""
        if self.byte_level:
            if all(char in _CHAR_TO_BYTE for char in piece):
                return bytes(_CHAR_TO_BYTE[char] for char in piece)
            return piece.encode()
        match = _BYTE_TOKEN.fullmatch(piece)
        if match:
            return bytes([int(match.group(1), 16)])
        return piece.replace(_SPACE, " ").encode()

    def _bytes_of_added(self, index: int) -> bytes:
        """The bytes of an added token: its content, unless the tokenizer decodes it as it does ordinary pieces."""
        literal = str(self._added[index].content).encode()
        spelled = self._spelled(str(self._added[index].content))
        if spelled == literal:
            return literal
        anchor = self.hf.encode("a", add_special_tokens=False)
        before, whole = (self.hf.decode(ids, clean_up_tokenization_spaces=False) for ids in (anchor, [*anchor, index]))
        return spelled if whole == before + spelled.decode(errors="replace") else literal

    def _spells_with_byte_alphabet(self) -> bool:
        ids = self.hf.encode(_PROBE, add_special_tokens=False)
        pieces = self.hf.convert_ids_to_tokens(ids)
        text = "".join(pieces)
        if not all(char in _CHAR_TO_BYTE for char in text):
            return False
        return bytes(_CHAR_TO_BYTE[char] for char in text).strip() == _PROBE.encode()

    def _end_of_turn(self) -> int | None:
        """The control token that the chat template writes straight after an assistant's words, if there is one."""
        if not self.hf.chat_template:
            return None
        words = "xyzzy"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": words}]
        text = try_template(self.hf, self.name, turns)
        ids = self.hf.encode(text[text.rindex(words) + len(words) :], add_special_tokens=False) if words in text else []
        for index in ids:
            if index in self._control:
                return int(index)
            if (self.token_bytes[index] or b"").strip():
                return None
        return None

    # ---- text -> ids

    def encode_prompt(self, text: str) -> list[int]:
        """Encodes a prompt as the tokenizer does by itself, with its BOS; an end-of-text id at the end is left out.

        Raises:
            RequestError: The text holds a lone surrogate.
        """
        return self.without_end(self.encode_whole(text))

    def encode_whole(self, text: str) -> list[int]:
        """Encodes a text with all that the tokenizer adds to it, before and after.

        Raises:
            RequestError: The text holds a lone surrogate.
        """
        return self._encode(text, add_special_tokens=True)

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """Returns ids without those at their end that end a text."""
        ids = list(ids)
        while ids and ids[-1] in self.end_ids and ids[-1] != self.hf.bos_token_id:
            ids.pop()
        return ids

    @cached_property
    def added_around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer puts before a text, such as its BOS, and after it."""
        plain, full = self.encode_rendered("a"), self.encode_whole("a")
        start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
        return tuple(full[:start]), tuple(full[start + len(plain) :])

    def encode_rendered(self, text: str) -> list[int]:
        """Encodes a conversation that a chat template has rendered; adds nothing, so that BOS never comes twice.

        Raises:
            RequestError: The text holds a lone surrogate.
        """
        return self._encode(text, add_special_tokens=False)

    def _encode(self, text: str, add_special_tokens: bool) -> list[int]:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise RequestError(
                f"the prompt holds {text[error.start]!r}, half of a surrogate pair and no character; replace such "
                "halves, for example by text.encode('utf-8', 'replace').decode()"
            ) from None
        with self._lock, _LARGE_LOCK if len(text) > _LARGE else nullcontext():
            return list(self.hf.encode(text, add_special_tokens=add_special_tokens, verbose=False))

    def encode_bytes(self, data: bytes) -> tuple[int, ...]:
        """Returns ids that write exactly these bytes, whatever stands before them (context-free).

        The tokenizer's own model cuts the bytes; where it cannot (parts of characters, unknown ones), the fewest ids of
        the vocabulary that spell them are taken.

        Raises:
            UnwritableTextError: No ids of this vocabulary spell these bytes.
        """
        ids = self._written.get(data)
        if ids is None:
            ids = self._written[data] = self._write(data)
        return ids

    def _write(self, data: bytes) -> tuple[int, ...]:
        single = self._ids_by_bytes.get(data, ())
        if len(single) == 1:
            return (single[0],)
        cut = self._model_cut(data)
        if cut is not None and (len(cut) == 1 or not single):
            return cut
        if single:
            return (single[0],)
        return self._fewest_ids(data)

    def encode_continuation(self, text: str) -> tuple[int, ...] | None:
        """Returns the ids that the tokenizer itself gives a text in the middle of another one, or None.

        The text is encoded behind an anchor, so that no space is put before it, and the anchor's ids are taken off
        again. None where every anchor melts into the text, or where the tokenizer would change the text.
        """
        for anchor, head in self._anchors:
            with self._lock:
                ids = tuple(self.hf.encode(anchor + text, add_special_tokens=False, verbose=False))
            if ids[: len(head)] == head:
                rest = tuple(own for i in ids[len(head) :] for own in self._replacements.get(i, (i,)))
                if all(i < self.rows for i in rest) and self.decode(rest) == text.encode():
                    return rest
        return None

    @cached_property
    def _replacements(self) -> dict[int, tuple[int, ...]]:
        """Per added token that the tokenizer decodes as other bytes than its spelling the ids that do write these."""
        found: dict[int, tuple[int, ...]] = {}
        for index, token in self._added.items():
            literal = str(token.content).encode()
            if index < self.rows and self.token_bytes[index] not in (None, literal):
                try:
                    found[index] = self.encode_bytes(literal)
                except UnwritableTextError:
                    continue
        return found

    @cached_property
    def unwritable_bytes(self) -> bytes:
        """The bytes, in order, that no id writes alone: a text that needs one of them may be unwritable."""
        return bytes(value for value in range(256) if bytes([value]) not in self._ids_by_bytes)

    @cached_property
    def _anchors(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(text, tuple(self.hf.encode(text, add_special_tokens=False))) for text in ("\n", ".", "0", "a")]

    @cached_property
    def _ids_by_bytes(self) -> dict[bytes, list[int]]:
        """Ids of each byte string; ordinary pieces before byte tokens, then by id."""
        table: dict[bytes, list[int]] = {}
        for index, data in enumerate(self.token_bytes):
            if data is not None:
                table.setdefault(data, []).append(index)
        for ids in table.values():
            if len(ids) > 1:
                pieces = dict(zip(ids, self.hf.convert_ids_to_tokens(ids), strict=True))
                ids.sort(key=lambda i: (bool(_BYTE_TOKEN.fullmatch(pieces[i])), i in self._added, i))
        return table

    def _model_cut(self, data: bytes) -> tuple[int, ...] | None:
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is None:
            return None
        if self.byte_level:
            spelled = "".join(_BYTE_TO_CHAR[value] for value in data)
        else:
            try:
                spelled = data.decode().replace(" ", _SPACE)
            except UnicodeDecodeError:
                return None
        ids = tuple(int(token.id) for token in backend.model.tokenize(spelled))
        known = all(i < len(self.token_bytes) and self.token_bytes[i] is not None for i in ids)
        return ids if ids and known and self.decode(ids) == data else None

    def _fewest_ids(self, data: bytes) -> tuple[int, ...]:
        """Shortest path over the positions of the bytes, longer tokens first among equals."""
        best: list[tuple[int, ...] | None] = [(), *[None] * len(data)]
        for start in range(len(data)):
            head = best[start]
            if head is None:
                continue
            for end in range(len(data), start, -1):
                ids = self._ids_by_bytes.get(data[start:end])
                tail = best[end]
                if ids and (tail is None or len(head) + 1 < len(tail)):
                    best[end] = (*head, ids[0])
        result = best[len(data)]
        if result is None:
            raise UnwritableTextError(self.name, data)
        return result
