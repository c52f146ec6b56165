"""A Hugging Face tokenizer at the level of bytes: which bytes each id writes, which ids end a text, bytes to ids."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any

from gac_core.errors import UnwritableTextError
from gac_core.templates.rendering import try_template
from gac_core.tokenization.encoder import Encoder
from gac_core.tokenization.token_bytes import BYTE_TO_CHAR, BYTE_TOKEN, SPACE, read_table

# Entries of the cache of `MemberTokenizer.encode_bytes`, about 200 bytes each.
_MAX_CACHED = 2**16


class MemberTokenizer:
    """One member's tokenizer, at the level of bytes.

    Safe to use from many threads: callers encode prompts while the engine's thread commits tokens and drafts. Texts are
    encoded by `Encoder`, which explains why that is safe; a long prompt does not delay commits. All tables are computed
    once and then only read. Cached properties may be computed twice, with equal results, where two threads ask for them
    first at the same time; the cache of `encode_bytes` is a `functools.lru_cache`, which has a lock of its own.

    Args:
        tokenizer: A loaded Hugging Face tokenizer, used by this object alone.
        name: The member's name, for errors.
        end_ids: Ids that end a text besides the tokenizer's own ``eos_token_id``, such as those of the generation
            config. Default none.
        rows: Rows of the model's output head; ids at or past it cannot be written. Default: the tokenizer's length.

    Attributes:
        hf: The Hugging Face tokenizer; only to be read (``chat_template``, ``added_tokens_decoder``,
            ``convert_ids_to_tokens``). Texts are encoded through the methods of this class.
        byte_level: Whether tokens are spelled in the alphabet of byte-level BPE; else as in SentencePiece.
        token_bytes: Per id, ``rows`` long, the bytes it writes; None where it writes no text (control tokens, padding).
        end_ids: Every id that ends this member's text: the tokenizer's, the generation config's, and the control token
            that its chat template puts after an assistant's turn.
        control_tokens: Spelling of each control token by id: special tokens, and added tokens that end a text.
        fingerprint: Hash of its tokens and their bytes, independent of where it was loaded from.
    """

    def __init__(self, tokenizer: Any, name: str, end_ids: Iterable[int] = (), rows: int | None = None) -> None:
        self.hf = tokenizer
        self.name = name
        self.rows = max(i + 1 for i in tokenizer.get_vocab().values()) if rows is None else rows
        self._prompts = Encoder(tokenizer)
        self._continuations = self._prompts.for_short_texts()
        self._cached_ids = lru_cache(maxsize=_MAX_CACHED)(self._ids_of_bytes)
        table = read_table(tokenizer, self.rows)
        self.byte_level, self.fingerprint = table.byte_level, table.fingerprint
        self._added = table.added
        ends = {i for i in (tokenizer.eos_token_id, *end_ids) if i is not None}
        turn_end = self._end_of_turn(table.special, table.token_bytes)
        self.end_ids = frozenset(ends if turn_end is None else ends | {turn_end})
        self.token_bytes = [None if i in self.end_ids else data for i, data in enumerate(table.token_bytes)]
        control = table.special | self.end_ids
        self.control_tokens = {i: token.content for i, token in sorted(self._added.items()) if i in control}

    def renamed(self, name: str) -> MemberTokenizer:
        """Returns a tokenizer that shares all tables with this one and uses another name in errors."""
        tokenizer = copy.copy(self)
        tokenizer.name = name
        tokenizer._cached_ids = lru_cache(maxsize=_MAX_CACHED)(tokenizer._ids_of_bytes)
        return tokenizer

    def _end_of_turn(self, special: frozenset[int], token_bytes: Sequence[bytes | None]) -> int | None:
        """The control token that the chat template writes directly after an assistant's content, if there is one."""
        if not self.hf.chat_template:
            return None
        content = "xyzzy"
        turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": content}]
        _, found, after = try_template(self.hf, self.name, turns).rpartition(content)
        for index in self._prompts.encode(after) if found else ():
            if index in special:
                return int(index)
            if (token_bytes[index] or b"").strip():
                return None
        return None

    # ---- ids -> bytes

    def decode(self, ids: Sequence[int]) -> bytes:
        """Returns the bytes that ids write; control tokens write none."""
        return b"".join(self.token_bytes[i] or b"" for i in ids)

    @cached_property
    def unwritable_bytes(self) -> bytes:
        """The byte values, ascending, that no id writes alone; text that contains one of them may be unwritable."""
        return bytes(value for value in range(256) if bytes([value]) not in self._ids_by_bytes)

    # ---- text -> ids

    def encode_prompt(self, text: str) -> list[int]:
        """Encodes a prompt with the special tokens that the tokenizer adds, without end-of-text ids at its end.

        Raises:
            RequestError: The text contains a lone surrogate.
        """
        return self.without_end(self.encode_whole(text))

    def encode_whole(self, text: str) -> list[int]:
        """Encodes a text with the special tokens that the tokenizer adds before and after it.

        Raises:
            RequestError: The text contains a lone surrogate.
        """
        return self._prompts.encode(text, add_special_tokens=True)

    def without_end(self, ids: Sequence[int]) -> list[int]:
        """Returns ids without the end-of-text ids at their end."""
        ids = list(ids)
        while ids and ids[-1] in self.end_ids and ids[-1] != self.hf.bos_token_id:
            ids.pop()
        return ids

    @cached_property
    def added_around(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The ids that the tokenizer adds before a text, such as its BOS, and after it."""
        plain, full = self.encode_rendered("a"), self.encode_whole("a")
        start = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
        return tuple(full[:start]), tuple(full[start + len(plain) :])

    def encode_rendered(self, text: str) -> list[int]:
        """Encodes a rendered conversation; adds no special tokens, since chat templates write them.

        Raises:
            RequestError: The text contains a lone surrogate.
        """
        return self._prompts.encode(text)

    def encode_bytes(self, data: bytes) -> tuple[int, ...]:
        """Returns ids that write exactly these bytes, whatever precedes them (context-free).

        The tokenizer's own model splits the bytes. Where it cannot (partial or unknown characters), the result is a
        shortest sequence of ids that spells them.

        Raises:
            UnwritableTextError: No ids of this vocabulary spell these bytes.
        """
        return self._cached_ids(data)

    def _ids_of_bytes(self, data: bytes) -> tuple[int, ...]:
        single = self._ids_by_bytes.get(data, ())
        if len(single) == 1:
            return (single[0],)
        split = self._split_by_model(data)
        if split is not None and (len(split) == 1 or not single):
            return split
        if single:
            return (single[0],)
        return self._fewest_ids(data)

    def encode_continuation(self, text: str) -> tuple[int, ...] | None:
        """Returns the ids that the tokenizer gives a text in the middle of another text.

        The text is encoded after an anchor character, so that no space is added before it, and the anchor's ids are
        removed again.

        Returns:
            The ids; None where every anchor merges with the text, or where the ids write other bytes than the text.
        """
        for anchor, head in self._anchors:
            ids = tuple(self._continuations.encode(anchor + text))
            if ids[: len(head)] == head:
                rest = tuple(own for i in ids[len(head) :] for own in self._replacements.get(i, (i,)))
                if all(i < self.rows for i in rest) and self.decode(rest) == text.encode():
                    return rest
        return None

    @cached_property
    def _replacements(self) -> dict[int, tuple[int, ...]]:
        """Ids that write the spelling of each added token that the tokenizer decodes to other bytes."""
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
    def _anchors(self) -> list[tuple[str, tuple[int, ...]]]:
        return [(text, tuple(self._continuations.encode(text))) for text in ("\n", ".", "0", "a")]

    @cached_property
    def _ids_by_bytes(self) -> dict[bytes, list[int]]:
        """Ids of each byte string; ordinary tokens before byte tokens and added tokens, then by id."""
        table: dict[bytes, list[int]] = {}
        for index, data in enumerate(self.token_bytes):
            if data is not None:
                table.setdefault(data, []).append(index)
        for ids in table.values():
            if len(ids) > 1:
                pieces = dict(zip(ids, self.hf.convert_ids_to_tokens(ids), strict=True))
                ids.sort(key=lambda i: (bool(BYTE_TOKEN.fullmatch(pieces[i])), i in self._added, i))
        return table

    def _split_by_model(self, data: bytes) -> tuple[int, ...] | None:
        backend = getattr(self.hf, "backend_tokenizer", None)
        if backend is None:
            return None
        if self.byte_level:
            spelled = "".join(BYTE_TO_CHAR[value] for value in data)
        else:
            try:
                spelled = data.decode().replace(" ", SPACE)
            except UnicodeDecodeError:
                return None
        ids = tuple(int(token.id) for token in backend.model.tokenize(spelled))
        known = all(i < len(self.token_bytes) and self.token_bytes[i] is not None for i in ids)
        return ids if ids and known and self.decode(ids) == data else None

    def _fewest_ids(self, data: bytes) -> tuple[int, ...]:
        """Shortest path over the positions of the bytes; ties go to the longer last token."""
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
