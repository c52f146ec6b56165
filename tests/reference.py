"""GaC written as plainly as possible, in float64, sharing no code with `gac_core`: the yardstick of the other tests.

Tokenizers are plain transformers tokenizers, every step reads the whole text again, and nothing is cached.
"""

from __future__ import annotations

import copy
import json
import math
import re

import llguidance
import torch
from reference_rules import COMBINERS, GATES, find_rule


def byte_alphabet() -> dict[str, int]:
    """The printable characters of byte-level BPE and the byte that each stands for."""
    table, extra = {}, 0
    for b in range(256):
        if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255:
            table[chr(b)] = b
        else:
            table[chr(256 + extra)] = b
            extra += 1
    return table


class PlainMember:
    """A model in float64 and its tokenizer, read as bytes.

    Attributes:
        pieces: Per id its bytes; None for control tokens and ends of text.
        ends: Ids that end a text.
    """

    def __init__(self, model, tokenizer) -> None:
        self.model = copy.deepcopy(model).double().eval()
        self.tokenizer = tokenizer
        backend = json.loads(tokenizer.backend_tokenizer.to_str())
        self.byte_level = "ByteLevel" in json.dumps([backend["pre_tokenizer"], backend["decoder"]])
        self.control = set(tokenizer.all_special_ids)
        self.control |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        self.ends = self._ends()
        self.pieces = [self._bytes(i) for i in range(len(tokenizer))]
        self.ids: dict[bytes, list[int]] = {}
        for i, data in enumerate(self.pieces):
            if data:
                self.ids.setdefault(data, []).append(i)

    def _ends(self) -> set[int]:
        configured = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])}
        if self.tokenizer.chat_template:
            turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "xyzzy"}]
            after = self.tokenizer.apply_chat_template(turns, tokenize=False).split("xyzzy")[1]
            first = self.tokenizer.encode(after.lstrip(), add_special_tokens=False)[:1]
            ends |= {i for i in first if i in self.control}
        return ends - {None}

    def _bytes(self, i: int) -> bytes | None:
        if i in self.control or i in self.ends:
            return None
        piece = self.tokenizer.convert_ids_to_tokens(i)
        if i in self.tokenizer.added_tokens_decoder:
            return piece.encode()
        if self.byte_level:
            alphabet = byte_alphabet()
            return bytes(alphabet[char] for char in piece)
        if re.fullmatch("<0x..>", piece):
            return bytes.fromhex(piece[3:5])
        return piece.replace("\u2581", " ").encode()

    def decode(self, ids) -> bytes:
        """The bytes that ids write."""
        return b"".join(self.pieces[i] or b"" for i in ids)

    def prompt(self, prompt) -> list[int]:
        """The ids of a text, with what the tokenizer puts before it, or of a rendered conversation."""
        if isinstance(prompt, str):
            ids = self.tokenizer.encode(prompt)
            while ids[-1] in self.ends and ids[-1] != self.tokenizer.bos_token_id:
                ids.pop()
            return ids
        text = self.tokenizer.apply_chat_template(prompt, tokenize=False, add_generation_prompt=True)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def write(self, data: bytes) -> list[int]:
        """Ids for some bytes, whatever stands before them: one that has them, the BPE's own cut, or the fewest."""
        single = self.ids.get(data, [])
        cut = self._bpe(data)
        if single:
            return cut if len(single) > 1 and len(cut) == 1 else [min(single, key=self._rank)]
        return cut or self._fewest(data)

    def _rank(self, i: int) -> tuple[bool, int]:
        """Ordinary pieces before byte tokens, then by id."""
        return bool(re.fullmatch("<0x..>", self.tokenizer.convert_ids_to_tokens(i))), i

    def _bpe(self, data: bytes) -> list[int]:
        """The ids that the tokenizer's model gives bytes without any pre-tokenization; empty where it cannot."""
        if self.byte_level:
            text = "".join({b: char for char, b in byte_alphabet().items()}[b] for b in data)
        else:
            text = data.decode(errors="replace").replace(" ", "\u2581")
        ids = [token.id for token in self.tokenizer.backend_tokenizer.model.tokenize(text)]
        return ids if self.decode(ids) == data else []

    def _fewest(self, data: bytes) -> list[int]:
        """The fewest ids whose bytes are these; of several such cuts the one with the longest last token."""
        best: list[list[int] | None] = [[]]
        for end in range(1, len(data) + 1):
            found = [
                [*head, min(self.ids[data[start:end]], key=self._rank)]
                for start, head in enumerate(best)
                if head is not None and data[start:end] in self.ids
            ]
            best.append(min(found, key=len, default=None))
        assert best[-1] is not None, f"{data!r} cannot be written"
        return best[-1]

    def cut(self, data: bytes) -> list[int] | None:
        """The ids that the tokenizer gives the text within another one, or None; an incomplete character in bytes."""
        for missing in range(min(4, len(data) + 1)):
            whole, part = data[: len(data) - missing], data[len(data) - missing :]
            try:
                text = whole.decode()
            except UnicodeDecodeError:
                continue
            for anchor in ("\n", ".", "0", "a"):
                head = self.tokenizer.encode(anchor, add_special_tokens=False)
                ids = self.tokenizer.encode(anchor + text, add_special_tokens=False)
                if ids[: len(head)] == head and self.decode(ids[len(head) :]) == whole:
                    return ids[len(head) :] + (self.write(part) if part else [])
            return None
        return None

    @torch.no_grad()
    def logits(self, text: list[int]) -> torch.Tensor:
        """The model's logits of the token after a text, float64."""
        return self.model(torch.tensor([text]), use_cache=False).logits[0, -1]

    def distribution(self, text: list[int], union: list[bytes]) -> torch.Tensor:
        """Next-token probabilities over the union and, last, the end of text; float64, shape ``[len(union) + 1]``."""
        logits = self.logits(text)
        place = {data: index for index, data in enumerate(union)}
        places = {i: place[data] for i, data in enumerate(self.pieces) if data}
        places |= {i: len(union) for i in self.ends if i < len(logits)}
        rows = sorted(places)
        probs = torch.softmax(logits[rows], -1)
        return torch.zeros(len(union) + 1, dtype=torch.float64).index_add_(
            0, torch.tensor([places[i] for i in rows]), probs
        )


def generate(
    members,
    prompt,
    steps,
    *,
    weights=None,
    combine="arithmetic",
    gate=0,
    threshold=None,
    gate_rule="confidence",
    commit="canonical",
    grammar=None,
    trace=None,
    absent=lambda count: (),
    given=None,
    bias=None,
    presence_penalty=0.0,
    frequency_penalty=0.0,
):
    """Greedy GaC.

    Args:
        members: The `PlainMember` objects.
        prompt: A text or a list of messages.
        steps: Tokens at most.
        weights: One per member, equal by default; a member with the weight 0 takes no part.
        combine: A key of `COMBINERS`.
        gate: Index of the gate.
        threshold: If given, the gate decides alone where its certainty is at or above it.
        gate_rule: A key of `GATES`.
        commit: ``"canonical"``: a member that did not choose the token as one of its own gets all the text since the
            prompt cut anew where that can be done. ``"context-free"``: it appends the ids of the bytes alone.
        grammar: If given, ``grammar.start(union)`` is a matcher of llguidance over the union and the end after it.
        trace: A list that receives at every decided step the distributions of the members asked, and the pick.
        absent: Given how many tokens are written, returns the members that have no vote. While the gate is one of them,
            the heaviest of the others takes its place, among equals the largest, among those the first.
        given: Tokens that are written in place of those with most probability; as many as ``steps``.
        bias: By bytes, or None for the end, what is added to log-probabilities.
        presence_penalty: Subtracted from those of tokens in the answer.
        frequency_penalty: Subtracted from them as often as they are in the answer.

    Returns:
        The tokens as bytes, and whether the end was reached.
    """
    rule, certainty = find_rule(COMBINERS, combine), find_rule(GATES, gate_rule)
    union = sorted({data for member in members for data in member.ids})
    weights = [1.0] * len(members) if weights is None else list(weights)
    voices = [index for index, weight in enumerate(weights) if weight > 0 and not (threshold == 0 and index != gate)]
    prompts = {index: members[index].prompt(prompt) for index in voices}
    texts = {index: list(ids) for index, ids in prompts.items()}
    out: list[bytes] = []
    matcher = None if grammar is None else grammar.start(union)

    def write(data, chosen_by):
        out.append(data)
        for index, text in texts.items():
            own = index in chosen_by and data in members[index].ids
            anew = None if own or commit == "context-free" else members[index].cut(b"".join(out))
            if anew is None:
                text.extend(members[index].write(data))
            else:
                text[len(prompts[index]) :] = anew

    def aligned(gate, parts):
        token = int(parts[gate].argmax())
        if token == len(union) or commit == "context-free":
            return True
        cuts = {index: members[index].cut(b"".join([*out, union[token]])) for index in parts if index != gate}
        read = {index: text[len(prompts[index]) :] for index, text in texts.items()}
        return all(cut is None or cut[: len(read[index])] == read[index] for index, cut in cuts.items())

    while len(out) < steps:
        if matcher is not None:
            if matcher.is_stopped():
                return out, True
            forced = matcher.compute_ff_tokens()
            for pick in forced[: steps - len(out)]:
                matcher.consume_token(pick)
                write(union[pick], ())
            if forced:
                continue
        voting = [index for index in voices if index not in absent(len(out))]
        sure = (
            gate if gate in voting else max(voting, key=lambda i: (weights[i], members[i].model.num_parameters(), -i))
        )
        parts = {index: members[index].distribution(texts[index], union) for index in voting}
        if matcher is not None:
            bits = matcher.compute_bitmask()
            allowed = torch.tensor([bits[i // 8] >> i % 8 & 1 for i in range(len(union) + 1)], dtype=torch.float64)
            parts = {index: part * allowed for index, part in parts.items()}
        added = torch.zeros(len(union) + 1, dtype=torch.float64)
        for data, value in (bias or {}).items():
            if data is not None and not any(data in members[index].ids for index in voices):
                continue
            added[len(union) if data is None else union.index(data)] += value
        for data in set(out):
            added[union.index(data)] -= presence_penalty + frequency_penalty * out.count(data)
        possible = added if matcher is None else added[allowed > 0]
        parts = {index: part * (added - possible.max()).exp() for index, part in parts.items()}
        share = weights[sure] / sum(weights[index] for index in voting)
        if threshold is not None and certainty(parts[sure], share) >= threshold:
            parts = {sure: parts[sure]}
        verified = (list(parts).index(sure), aligned(sure, parts)) if combine == "safe" else ()
        total = rule(list(parts.values()), [weights[index] for index in parts], *verified)
        pick = int(total.argmax()) if given is None else union.index(given[len(out)])
        assert math.isfinite(total[pick])
        assert total[pick] > 0
        if trace is not None:
            trace.append(([part.numpy() for part in parts.values()], pick))
        if pick == len(union):
            return out, True
        if matcher is not None:
            matcher.consume_token(pick)
        write(union[pick], {index for index, part in parts.items() if part[pick] >= total[pick] / 2})
    return out, False


class Oracle:
    """The same grammar over the reference's own union, for `reference.generate`."""

    def __init__(self, grammar):
        self.grammar = grammar

    def start(self, union):
        ids = {data: index for index, data in enumerate(union)}

        def spell(text):
            data, out = text if isinstance(text, bytes) else text.encode(), []
            while data:
                piece = next(data[:n] for n in range(len(data), 0, -1) if data[:n] in ids)
                out.append(ids[piece])
                data = data[len(piece) :]
            return out

        spell.eos_token_id, spell.bos_token_id = len(union), None
        spell.tokens, spell.special_token_ids = [*union, b"\xff<end>"], [len(union)]
        tokenizer = llguidance.LLTokenizer(llguidance.TokenizerWrapper(spell))
        return llguidance.LLMatcher(tokenizer, llguidance.LLMatcher.grammar_from_lark(self.grammar.lark))
