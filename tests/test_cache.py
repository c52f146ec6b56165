"""The storage of the KV cache: resizing keeps what may be read again, and clears the rest."""

from __future__ import annotations

import random

import pytest
import torch

from gac_core.model.cache import SlotCache, SlotMapping

HEADS, DIM = 2, 3


def write(cache: SlotCache, starts: dict[int, int], width: int, value: float) -> None:
    """Writes ``width`` new positions to some slots, as a forward does."""
    slots = sorted(starts)
    length = max(starts.values()) + width
    cache.reserve(slots[-1] + 1, length)
    cache.set_mapping(SlotMapping(tuple(slots), tuple(starts[slot] for slot in slots), width, length))
    new = torch.full((len(slots), HEADS, width, DIM), value)
    for layer in cache.layers:
        layer.update(new, -new)


def kept(cache: SlotCache, slot: int, length: int) -> list[float]:
    """Returns the value at each of the first positions of a slot, the same in all heads and stores."""
    keys = [store[slot, :, :length] * (1 - 2 * (number % 2)) for number, store in enumerate(cache.stores())]
    assert all(torch.equal(store, keys[0]) for store in keys)
    assert torch.equal(keys[0], keys[0][:1, :, :1].expand_as(keys[0]))
    return keys[0][0, :, 0].tolist()


@pytest.mark.parametrize("seed", range(20))
def test_every_resize_keeps_what_was_written(seed):
    """Random forwards, roll-backs, copies, swaps, states that are saved and restored, and sizes against plain lists."""
    draw = random.Random(seed)
    cache, texts = SlotCache(2), [[] for _ in range(6)]
    write(cache, dict.fromkeys(range(6), 0), 1, 9.0)
    texts = [[9.0] for _ in range(6)]
    saved, saved_text = cache.save(0, 1), [9.0]
    for value in range(1, 40):
        action = draw.choice(["write", "write", "write", "copy", "swap", "grow", "shrink", "save", "restore"])
        one, other = draw.sample(range(len(texts)), 2)
        if action == "write":
            width = draw.randint(1, 70)
            starts = {slot: draw.randint(0, len(texts[slot])) for slot in draw.sample(range(len(texts)), 2)}
            write(cache, starts, width, float(value))
            for slot, start in starts.items():
                texts[slot] = texts[slot][:start] + [float(value)] * width
        elif action == "copy":
            length = draw.randint(0, len(texts[one]))
            cache.copy(one, other, length)
            texts[other] = texts[one][:length]
        elif action == "save":
            saved, saved_text = cache.save(one, len(texts[one])), texts[one]
        elif action == "restore":
            length = draw.randint(0, len(saved_text))
            cache.reserve(len(texts), length)
            cache.restore(saved, one, length)
            texts[one] = saved_text[:length]
        elif action == "swap":
            cache.swap(one, other, max(len(texts[one]), len(texts[other])))
            texts[one], texts[other] = texts[other], texts[one]
        elif action == "grow":
            cache.reserve(len(texts) + 1, draw.randint(1, 300))
            texts.append([])
        elif len(texts) > 2:
            texts.pop()
            cache.shrink(len(texts), max(map(len, texts)))
        assert [kept(cache, slot, len(text)) for slot, text in enumerate(texts)] == texts


def test_new_memory_is_zero():
    cache = SlotCache(1)
    write(cache, {0: 0, 1: 0}, 2, 1.0)
    cache.reserve(4, 200)
    for store in cache.stores():
        assert store.shape[0] == 4
        assert store.shape[2] >= 200
        assert int(store.count_nonzero()) == 2 * HEADS * 2 * DIM
