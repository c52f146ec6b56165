"""Members without usable logits or memory, that raise, or that cannot write a text: errors of single requests."""

from __future__ import annotations

import asyncio

import pytest
import torch
from architectures import random_model
from conftest import ensemble_of, random_pair, start
from tokenizers import Tokenizer, models
from transformers import PreTrainedTokenizerFast

from gac_core import (
    InvalidLogitsError,
    MemberError,
    UnwritableTextError,
    as_metadata,
)
from gac_core.model import cache
from gac_core.model.cache import SlotCache
from gac_core.model.chunk import Chunk
from gac_core.model.member import Member
from gac_core.model.row_runner import RowRunner
from gac_core.model.slots import SlotTable


class Broken:
    """Makes a member's output head give bad logits for texts that hold one token."""

    def __init__(self, model, marker, value):
        self.marker, self.value, self.sick = marker, value, False
        model.register_forward_pre_hook(self.look, with_kwargs=True)
        model.get_output_embeddings().register_forward_hook(self.spoil)

    def look(self, module, args, kwargs):
        self.sick = [self.marker in row for row in kwargs["input_ids"].tolist()]

    def spoil(self, module, args, output):
        output = output.clone()
        for index, sick in enumerate(self.sick):
            if sick:
                output[0, index] = self.value
        return output


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_bad_logits_fail_their_request_alone(value):
    pairs = [random_pair("llama"), random_pair("qwen2", seed=1)]
    marker = pairs[1][1].encode("%", add_special_tokens=False)[-1]
    # A drafted token that is the marker would spoil a text that does not hold it.
    with ensemble_of(pairs, drafts=[]) as both:
        good = both.generate("In which town", max_tokens=8)
        assert good.tokens
        Broken(pairs[1][0], marker, value)
        streams = [start(both, p, max_tokens=8) for p in ("100 %", "In which town")]
        with pytest.raises(InvalidLogitsError, match="'m1'"):
            list(streams[0])
        assert tuple(t for chunk in streams[1] for t in chunk.tokens) == good.tokens
        assert both.generate("In which town", max_tokens=8).tokens == good.tokens


def test_what_a_failed_request_left_in_a_slot_reaches_nobody():
    model, tokenizer = random_pair("llama")
    with ensemble_of([(model, tokenizer)]) as one:
        good = one.generate("In which", max_tokens=10).tokens
        weight = model.get_input_embeddings().weight
        with torch.no_grad():
            kept = weight.clone()
            weight.fill_(float("nan"))
        with pytest.raises(InvalidLogitsError):
            one.generate("In which town is the Torno Bridge, and who built it?", max_tokens=3)
        with torch.no_grad():
            weight.copy_(kept)
        assert one.generate("In which", max_tokens=10).tokens == good


def test_a_member_that_raises_is_named_and_others_go_on():
    model, tokenizer = random_pair("llama")
    with ensemble_of([(model, tokenizer)]) as one:
        good = one.generate("In which", max_tokens=5).tokens
        handle = model.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("out of memory")))
        with pytest.raises(MemberError, match="'m0' failed: RuntimeError: out of memory"):
            one.generate("In which", max_tokens=5)
        handle.remove()
        assert one.generate("In which", max_tokens=5).tokens == good


def no_memory(monkeypatch, owner, name, at=1):
    """Lets a function raise once, at its n-th call."""
    calls, real = [0], getattr(owner, name)

    def raising(*args, **kwargs):
        calls[0] += 1
        if calls[0] == at:
            raise torch.OutOfMemoryError("no memory")
        return real(*args, **kwargs)

    monkeypatch.setattr(owner, name, raising)
    return calls


@pytest.mark.parametrize("at", [1, 2, 4])
def test_memory_that_is_missing_once_is_missed_once(monkeypatch, at):
    one = ensemble_of([random_pair("llama")])
    want = one.generate("Who is", max_tokens=3).text
    calls = no_memory(monkeypatch, cache, "resized", at)
    with pytest.raises(MemberError, match="no memory"):
        one.generate("word " * 60, max_tokens=3)
    assert calls[0] >= at
    one.generate("word " * 60, max_tokens=3)
    assert one.generate("Who is", max_tokens=3).text == want


def test_a_request_without_a_slot_fails_alone(monkeypatch):
    one = ensemble_of([random_pair("llama")])
    asked = {"max_tokens": 40, "temperature": 1.0, "seed": 1}
    want = one.generate("Who is", **asked).text
    first = one.stream("Who is", **asked)
    text = next(first).text
    calls = no_memory(monkeypatch, SlotTable, "claim")
    with pytest.raises(MemberError, match="no memory"):
        one.generate("Another text", max_tokens=3)
    assert calls == [1]
    assert text + "".join(chunk.text for chunk in first) == want


def test_an_engine_outlives_a_failed_release(monkeypatch):
    one = ensemble_of([random_pair("llama")])
    first, second = (one.stream(text, max_tokens=40, temperature=1.0, seed=1) for text in ("Who is", "Where is the"))
    next(first), next(second)
    calls = no_memory(monkeypatch, SlotCache, "swap")
    first.close()
    assert list(second)[-1].output is not None
    assert one.generate("Who is", max_tokens=2).text
    assert calls[0] >= 2
    assert one._members[0]._slots.num_running == 0


def test_a_row_whose_state_was_lost_says_so(monkeypatch):
    model, tokenizer = random_pair("llama")
    one = ensemble_of([(model, tokenizer)])
    member = one._members[0]
    member._runner = RowRunner(model)
    member._slots = SlotTable(member._runner, 0)
    no_memory(monkeypatch, model, "forward", at=5)
    with pytest.raises(MemberError, match="was lost at position"):
        one.generate_batch(["Who is the first one", "Where is the second one"], max_tokens=12)


@pytest.mark.parametrize("is_async", [False, True])
def test_one_failing_prompt_ends_a_batch_at_once(monkeypatch, is_async):
    model, tokenizer = random_pair("llama")
    one = ensemble_of([(model, tokenizer)])
    member, forwards = one._members[0], []

    def forward(rows):
        if any(row.start == 0 and len(row.token_ids) < 3 for row in rows):
            raise RuntimeError("bad row")
        forwards.append(rows)
        return original(rows)

    original = member._runner.forward
    monkeypatch.setattr(member._runner, "forward", forward)
    prompts = ["Who is the first one of all", "a"]
    asked = {"max_tokens": 500, "temperature": 1.0, "seed": 1}

    async def ask():
        return await one.agenerate_batch(prompts, **asked) if is_async else one.generate_batch(prompts, **asked)

    with one, pytest.raises(MemberError, match="bad row"):
        asyncio.run(ask())
    assert len(forwards) < 100


@pytest.mark.parametrize("commit", ["canonical", "context-free"])
def test_a_member_that_cannot_write_the_text_is_left_out_or_ends_the_request(commit, caplog):
    """A member of a few words, no letters and no bytes, beside one that writes anything."""
    words = {"<end>": 0, "<unk>": 1, "Who": 2, "In": 3, "stone": 4}
    few = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")),
        eos_token="<end>",
        unk_token="<unk>",
        pad_token="<end>",
    )
    writer = random_pair("llama")
    texts = set()
    settings = {"commit": commit, "weights": [9.0, 1.0]}
    with ensemble_of([writer, (random_model("llama", few), few)], **settings) as both:
        alone = both.generate_batch(["Who", "Who"], max_tokens=1)
        assert [output.usage.completion_tokens for output in alone] == [1, 1]
        for drafts in (True, False):
            caplog.clear()
            whole = both.generate("Who", max_tokens=8, drafts=drafts)
            # Its vote counted once; the others wrote the rest, and the first member alone is all that is left.
            assert whole.usage.completion_tokens == 8
            assert list(whole.stats.left_out) == ["m1"]
            assert "cannot encode" in whole.stats.left_out["m1"]
            assert as_metadata(whole)["gac"]["left_out"] == whole.stats.left_out
            assert whole.stats.members["m1"].forwards < 8
            assert any("m1" in record.getMessage() for record in caplog.records)
            texts.add(whole.tokens)
        assert len(texts) == 1
        for _ in range(2):
            # What the gate cannot write ends its own request, and no other.
            with pytest.raises(UnwritableTextError, match=r"m1.*cannot encode.*byte fallback") as caught:
                both.generate("Who", max_tokens=8, gate="m1", threshold=None)
            assert caught.value.value
        assert both.generate("Who", max_tokens=8).stats.left_out


def test_a_chunk_behind_what_the_cache_holds_has_no_logits():
    member = Member.from_model(*random_pair("llama"), "m")
    (first,) = member.forward([Chunk("r", 0, tuple(range(5, 9)), 1)])
    assert first.read == 4
    (result,) = member.forward([Chunk("r", 5, (7,), 1)])
    assert "lacks tokens before position 5" in str(result.logits)
    member.release("r", clear=True)
    (result,) = member.forward([Chunk("r", 4, (7,), 1)])
    assert "lacks tokens before position 4" in str(result.logits)
