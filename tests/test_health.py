"""A member that misbehaves is named, and costs only the requests that need it."""

from __future__ import annotations

import pytest
import torch
from conftest import ensemble_of, random_pair, start

from gac_core import MemberError


def swap_result(monkeypatch, member, change):
    """Changes what a member's runner returns."""
    original = member._runner.forward

    def forward(rows):
        return change(rows, original(rows))

    monkeypatch.setattr(member._runner, "forward", forward)


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda logits: None, "returned a NoneType instead of logits"),
        (lambda logits: logits.tolist(), "returned a list instead of logits"),
        (lambda logits: logits[:, :-1], r"logits of shape \[1, \d+\] and dtype torch.float32; expected"),
        (lambda logits: torch.cat([logits, logits]), r"shape \[2, \d+\].*expected .* shape \[1, \d+\]"),
        (lambda logits: logits[0], r"logits of shape \[\d+\]"),
        (lambda logits: logits.long(), "dtype torch.int64"),
    ],
)
def test_wrong_logits_are_that_members_error_alone(monkeypatch, spoil, words):
    with ensemble_of([random_pair("llama"), random_pair("qwen2", seed=1)]) as both:
        good = both.generate("In which town is it", max_tokens=6).tokens
        prompt_ids = both._members[1].tokenizer.encode_prompt("Who")

        def change(rows, parts):
            return [
                spoil(part) if row.start == 0 and list(row.token_ids) == prompt_ids else part
                for row, part in zip(rows, parts, strict=True)
            ]

        swap_result(monkeypatch, both._members[1], change)
        streams = [start(both, prompt, max_tokens=6, drafts=False) for prompt in ("In which town is it", "Who")]
        with pytest.raises(MemberError, match=f"'m1' failed: .*{words}") as caught:
            list(streams[1])
        assert isinstance(caught.value.__cause__, (TypeError, ValueError))
        assert tuple(token for chunk in streams[0] for token in chunk.tokens) == good
        monkeypatch.undo()
        assert both.generate("In which town is it", max_tokens=6).tokens == good


@pytest.mark.parametrize("returned", [None, [], 3])
def test_a_runner_that_returns_no_list_of_logits_is_named(monkeypatch, returned):
    with ensemble_of([random_pair("llama")]) as one:
        swap_result(monkeypatch, one._members[0], lambda rows, parts: returned)
        with pytest.raises(MemberError, match=r"'m0' failed: (TypeError|ValueError)"):
            one.generate_batch(["Who", "In which town"], max_tokens=3)
        monkeypatch.undo()
        assert one.generate("Who", max_tokens=3).tokens
