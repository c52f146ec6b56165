"""Tokenizers of real models: bytes, control tokens, and a base model in a conversation."""

from __future__ import annotations

import pytest
from conftest import REAL_NAMES
from prompts import encode_prompt

from gac_core.inspection import inspect, load
from gac_core.templates.plain import plain_template, turn_ends
from gac_core.tokenization.escaping import encode_text

pytestmark = pytest.mark.real


@pytest.mark.parametrize("name", REAL_NAMES)
def test_every_id_is_decoded_as_the_tokenizer_does(real, name):
    member = load(real.folder(name)).tokenizer
    (anchor,) = member.hf.encode("a", add_special_tokens=False)[-1:]
    before = member.hf.decode([anchor], clean_up_tokenization_spaces=False)
    for index, data in enumerate(member.token_bytes):
        if data is not None:
            text = member.hf.decode([anchor, index], clean_up_tokenization_spaces=False)
            assert text == before + data.decode(errors="replace"), index


@pytest.mark.parametrize("name", REAL_NAMES)
def test_no_spelling_becomes_a_control_token(real, name):
    member = load(real.folder(name)).tokenizer
    words = list(member.control_tokens.values())[:200]
    head, _ = member.added_around
    for text in ["so " + " ".join(words), "".join(words), *(word + words[0][1:] for word in words[:20])]:
        ids = encode_text(member, text)[len(head) :]
        assert not set(ids) & set(member.control_tokens)
    plain = "The capital of <b>France</b> is\n\n"
    assert encode_text(member, plain) == encode_prompt(member, plain, parse_special=True)


def test_bytes_that_cannot_be_written_are_reported(real):
    """21 of SmolLM2's: six control characters, two that begin unassigned characters, and 13 outside UTF-8."""
    report = inspect([load(real.folder(name)) for name in REAL_NAMES], ["bridge"])
    missing = {member.name: member.unwritable_bytes for member in report.members}
    assert {name: len(values) for name, values in missing.items()} == {"smollm2": 21, "qwen": 0, "gemma3": 0}
    told = [warning for warning in report.warnings if "cannot encode" in warning]
    assert len(told) == 1
    assert all(part in told[0] for part in ("smollm2", "21 of 256", "0x04", "13 of them", "another member the gate"))


def test_a_base_model_takes_part_in_conversations(real, monkeypatch):
    """With the plain template, where it begins the next turn, the answer ends."""
    _, tokenizer = real.pair("gemma3", "bfloat16")
    monkeypatch.setattr(tokenizer, "chat_template", plain_template(tokenizer))
    talk = [{"role": "user", "content": "What is the capital of France?"}]
    with real.ensemble("smollm2", "gemma3", dtype="bfloat16") as both:
        ids = both._input_processor.request(talk, None, {})[0].voices[1].text.token_ids
        assert ids.count(tokenizer.bos_token_id) == 1
        answer = both.generate(talk, max_tokens=48)
        assert "Paris" in answer.text
        assert (answer.finish_reason, answer.stopped_by) == ("stop", None)
        alone = both.generate(talk, max_tokens=64, threshold=0.0, gate="gemma3")
        assert not any(end in alone.text for end in turn_ends(tokenizer.chat_template))
