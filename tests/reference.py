"""GaC written as plainly as possible, in float64, sharing no code with the engine: the yardstick of the other tests.

Dense mapping matrices, plain loops, and the whole text read anew at every step.
"""

from __future__ import annotations

import re

import torch


def byte_table() -> dict[str, int]:
    """The printable characters of byte-level BPE and their bytes."""
    keep = [b for b in range(256) if 33 <= b <= 126 or 161 <= b <= 172 or 174 <= b <= 255]
    table, extra = {}, 0
    for b in range(256):
        if b in keep:
            table[chr(b)] = b
        else:
            table[chr(256 + extra)] = b
            extra += 1
    return table


def spelled(tokenizer, byte_level: bool) -> list[bytes | None]:
    """The bytes of each id; None for control tokens."""
    table, out = byte_table(), []
    control = set(tokenizer.all_special_ids)
    control |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    for i in range(len(tokenizer)):
        piece = tokenizer.convert_ids_to_tokens(i)
        if i in control:
            out.append(None)
        elif byte_level:
            out.append(bytes(table[c] for c in piece))
        elif re.fullmatch("<0x..>", piece):
            out.append(bytes.fromhex(piece[3:5]))
        else:
            out.append(piece.replace("\u2581", " ").encode())
    return out


def generate(pairs, byte_level, prompts, ends, writers, steps, threshold=None, cutters=None, grammar=None, trace=None):
    """Greedy GaC.

    Args:
        pairs: (model, tokenizer) of each member.
        byte_level: Per member whether its pieces are spelled in the byte alphabet.
        prompts: Per member its prompt ids.
        ends: Per member its end-of-text ids.
        writers: Per member a function from bytes to ids.
        steps: Tokens at most.
        threshold: If given, member 0 decides alone at or above it.
        cutters: If given, per member a function from text to ids: a member that did not choose the token as one of its
            own gets all the text since the prompt cut anew where that can be done, else ``writers`` append.
        grammar: If given, ``grammar.start(union)`` is a matcher of llguidance over the union and the end after it.
        trace: A list that receives at every decided step the distributions of the members asked, and the pick.

    Returns:
        The tokens as bytes, and whether the end was reached.
    """
    tables = [spelled(t, b) for (_, t), b in zip(pairs, byte_level, strict=True)]
    union = sorted({x for table, e in zip(tables, ends, strict=True) for i, x in enumerate(table) if x and i not in e})
    place = {x: i for i, x in enumerate(union)}
    matrices = []
    for (model, _), table, end in zip(pairs, tables, ends, strict=True):
        rows = model.get_output_embeddings().weight.shape[0]
        matrix = torch.zeros(rows, len(union) + 1, dtype=torch.float64)
        for i, data in enumerate(table):
            if i in end:
                matrix[i, len(union)] = 1
            elif data:
                matrix[i, place[data]] = 1
        matrices.append(matrix)
    models = [model.double() for model, _ in pairs]
    texts, out = [list(p) for p in prompts], []
    matcher = None if grammar is None else grammar.start(union)

    def commit(pick, chose):
        out.append(union[pick])
        for member, (text, write) in enumerate(zip(texts, writers, strict=True)):
            anew = None if cutters is None or chose[member] else cutters[member](b"".join(out).decode())
            if anew is None:
                text.extend(write(union[pick]))
            else:
                text[len(prompts[member]) :] = anew

    while len(out) < steps:
        if matcher is not None:
            if matcher.is_stopped():
                return out, True
            forced = matcher.compute_ff_tokens()
            for pick in forced[: steps - len(out)]:
                matcher.consume_token(pick)
                commit(pick, [False] * len(pairs))
            if forced:
                continue
        mapped = []
        for model, matrix, text in zip(models, matrices, texts, strict=True):
            with torch.no_grad():
                logits = model(torch.tensor([text]), use_cache=False).logits[0, -1]
            logits[matrix.sum(1) == 0] = float("-inf")
            mapped.append(torch.softmax(logits, -1) @ matrix)
        if matcher is not None:
            bits = matcher.compute_bitmask()
            allowed = torch.tensor([bits[i // 8] >> i % 8 & 1 for i in range(len(union) + 1)], dtype=torch.float64)
            mapped = [part * allowed for part in mapped]
        total, asked = sum(mapped) / len(mapped), len(mapped)
        if threshold is not None and mapped[0].max() >= threshold * mapped[0].sum():
            total, asked = mapped[0], 1
        pick = int(total.argmax())
        if trace is not None:
            trace.append(([part.numpy() for part in mapped[:asked]], pick))
        if pick == len(union):
            return out, True
        chose = [
            member < asked and bool(mapped[member][pick] >= total[pick] / 2) and union[pick] in tables[member]
            for member in range(len(pairs))
        ]
        if matcher is not None:
            matcher.consume_token(pick)
        commit(pick, chose)
    return out, False
