"""The laws of the engine on real language models, token for token in fp32 unless said otherwise."""

from __future__ import annotations

import pytest
import torch
from conftest import REAL_NAMES

pytestmark = pytest.mark.real

PROMPTS = [
    "def fibonacci(n):\n",
    "The capital of France is",
    "Question: Who wrote Hamlet?\nAnswer:",
    "Once upon a time, in a village by the sea,",
    "import json\n\ndef read_config(path):\n    ",
    "Water boils at 100 degrees Celsius, or",
    "1, 1, 2, 3, 5, 8,",
    "The three primary colours are",
    "SELECT name, age FROM users WHERE",
    "Das Wetter in Zürich ist heute",
]


def generate(real, name, prompt, count):
    """transformers' own greedy text, with the control tokens that an ensemble never writes suppressed."""
    model, _ = real.pair(name)
    with real.ensemble(name) as alone:
        member = alone._members[0].tokenizer
    silent = [i for i, data in enumerate(member.token_bytes) if data is None and i not in member.end_ids]
    ids = torch.tensor([member.encode_prompt(prompt)])
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=count,
        do_sample=False,
        suppress_tokens=silent or None,
        eos_token_id=sorted(member.end_ids),
        repetition_penalty=1.0,
    )[0, ids.shape[1] :].tolist()
    return member.decode(out)


@pytest.mark.parametrize("name", REAL_NAMES)
def test_one_member_equals_its_own_generate(real, name):
    want = [generate(real, name, prompt, 24) for prompt in PROMPTS]
    with real.ensemble(name) as one:
        got = [b"".join(output.tokens) for output in one.generate_batch(PROMPTS, max_tokens=24)]
    assert got == want
