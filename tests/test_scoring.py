"""`Ensemble.score`: the log-probability of a given text, on the path that decoding takes."""

from __future__ import annotations

import asyncio
import math

import pytest
import reference
import torch
from conftest import EMBEDDED, LONG_PROMPT, QUESTION, ensemble_of, pair, random_pair, shared_ensemble, tokenizer_of
from faulty import faulty_ensemble

from gac_core import (
    EmptyPromptError,
    Grammar,
    InvalidLogitsError,
    MemberError,
    RequestError,
    RequestTimeoutError,
    SamplingParams,
    UnwritableTextError,
)
from gac_core.decoding import continuation as drafts
from gac_core.tokenization.continuation import cut_continuation
from gac_core.tokenization.tokenizer import MemberTokenizer

TEXTS = [" the town of Halkus.", "é ü 😀 1874 crowns,\n\n 14:15  x", "stone stone stone", " Zq<|im_end|>zz"]
SETTINGS = [
    {},
    {"weights": {"ash": 1, "birch": 2, "cedar": 4}},
    {"weights": {"birch": 0}},
    {"threshold": 0.4, "gate": "birch"},
    {"threshold": 0.9, "gate": "cedar", "gate_rule": "margin"},
    {"threshold": 0.0, "gate": "ash"},
    {"combine": "geometric"},
    {"combine": "core"},
    {"combine": "safe", "threshold": 0.7},
    {"weights": "perplexity"},
    {"repetition_penalty": 1.3},
]


def logprobs(score):
    return [token.logprob for token in score.tokens]


def reference_score(members, text, gate, combine="arithmetic", weights=None, **settings):
    """The tokens that the gate cuts a text into, and the log-probability of each, by the reference."""
    given = [members[gate].decode([i]) for i in members[gate].cut(text)]
    trace: list = []
    asked = {"combine": combine, "weights": weights, "gate": gate, "given": given, "trace": trace, **settings}
    reference.generate(members, "In which town", len(given), **asked)
    totals = [
        reference.COMBINERS[combine](
            [torch.from_numpy(part) for part in parts], weights if weights and len(parts) > 1 else [1.0] * len(parts)
        )
        for parts, _ in trace
    ]
    return given, [math.log(total[pick]) for total, (_, pick) in zip(totals, trace, strict=True)]


def log_probabilities(logits, tokenizer):
    """A member's log-probabilities of byte strings: control tokens have none, and ids of the same bytes are summed."""
    ids = {data: [i for i, own in enumerate(tokenizer.token_bytes) if own == data] for data in tokenizer.token_bytes}
    silent = [i for i in ids.pop(None, []) if i not in tokenizer.end_ids]
    logits[..., silent] = float("-inf")
    logs = torch.log_softmax(logits.double(), -1)
    return lambda row, data: float(logs[row, ids[data]].logsumexp(0))


def close(values, tolerance=2e-4):
    return pytest.approx(list(values), abs=tolerance)


@pytest.mark.parametrize("asked", SETTINGS, ids=str)
def test_a_score_is_the_sum_of_the_log_probabilities_of_generate(ensemble, asked):
    """For the tokens that generate selected, greedily or not."""
    written = ensemble.generate(QUESTION, max_tokens=24, temperature=0.9, seed=3, logprobs=2, **asked)
    wanted = [token for token in written.logprobs if token.token]
    score = ensemble.score(QUESTION, written.tokens, logprobs=2, token_stats=True, **asked)
    assert tuple(token.token for token in score.tokens) == written.tokens
    assert logprobs(score) == close(token.logprob for token in wanted)
    assert [token.rank for token in score.tokens] == [token.rank for token in wanted]
    assert [stats.ensembled for stats in score.token_stats] == [True] * len(wanted) or "threshold" in asked
    assert score.logprob == pytest.approx(math.fsum(logprobs(score)))
    assert score.greedy == all(token.top[0][0] == token.token for token in wanted)


def test_what_greedy_decoding_writes_is_greedy(ensemble):
    greedy = ensemble.generate(QUESTION, max_tokens=24)
    assert ensemble.score(QUESTION, greedy.tokens).greedy
    assert not ensemble.score(QUESTION, [*greedy.tokens[:-1], b"zz" if b"zz" in ensemble._union.ids else b"z"]).greedy


@pytest.mark.parametrize("asked", SETTINGS, ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_one_chunk_gives_the_same_as_token_by_token(ensemble, text, asked):
    fast, plain = (ensemble.score("In which town", text, drafts=drafted, **asked) for drafted in (True, False))
    assert b"".join(token.token for token in fast.tokens) == text.encode()
    assert [token.token for token in fast.tokens] == [token.token for token in plain.tokens]
    assert logprobs(fast) == close(logprobs(plain))
    assert fast.greedy == plain.greedy
    assert fast.stats.accepted > 0 == plain.stats.drafted
    assert max(m.forwards for m in fast.stats.members.values()) < len(fast.tokens)


@pytest.mark.parametrize(
    ("gate", "commit", "asked"),
    [
        (0, "context-free", {}),
        (1, "canonical", {"threshold": 0.4}),
        (2, "canonical", {"combine": "geometric"}),
        (2, "context-free", {"weights": [1, 2, 4]}),
    ],
    ids=str,
)
def test_scores_are_those_of_the_reference(plain_members, gate, commit, asked):
    """GaC in float64, cut and committed by code of its own."""
    names = ["ash", "birch", "cedar"]
    with shared_ensemble(EMBEDDED, commit=commit) as loaded:
        for text in TEXTS[:2]:
            tokens, wanted = reference_score(plain_members, text.encode(), gate, commit=commit, **asked)
            score = loaded.score("In which town", text, gate=names[gate], **{"threshold": None, **asked})
            assert [token.token for token in score.tokens] == tokens
            assert logprobs(score) == close(wanted, 1e-3)


def test_one_member_scores_as_transformers_does():
    """The log-likelihood of the canonical ids, among the tokens that write text and the ends of text."""
    model, tokenizer = pair(EMBEDDED[1])
    text = " the town of Halkus."
    prompt = tokenizer.encode("In which town")
    ids = tokenizer.encode("In which town" + text)[len(prompt) :]
    with shared_ensemble([EMBEDDED[1]]) as one:
        score = one.score("In which town", text)
        logits = model(torch.tensor([prompt + ids])).logits[0, len(prompt) - 1 : -1].detach()
        tokenizer = one._members[0].tokenizer
    tokens, logs = [tokenizer.token_bytes[i] for i in ids], log_probabilities(logits, tokenizer)
    assert [token.token for token in score.tokens] == tokens
    assert logprobs(score) == close(logs(row, data) for row, data in enumerate(tokens))


def test_a_draft_that_a_voice_tokenizes_anew_goes_on_with_the_next_step():
    """Sharp random members with different tokenizers, whose ids change where others choose the bytes."""
    models = [(random_pair("llama")[0], tokenizer_of(EMBEDDED[0]))]
    models += [pair(EMBEDDED[1]), pair(EMBEDDED[2])]
    with ensemble_of(models) as loaded:
        for text in [*TEXTS, b"\xf0\x9f", b"a\xff\xfeb", b"\x80", "ééé".encode()[:5]]:
            fast, plain = (loaded.score("one two", text, gate="m1", drafts=drafted) for drafted in (True, False))
            assert b"".join(t.token for t in fast.tokens) == (text.encode() if isinstance(text, str) else text)
            assert logprobs(fast) == close(logprobs(plain))
        letters = [bytes([value]) for value in b" the bridge"]
        fast, plain = (loaded.score("one two", letters, drafts=drafted) for drafted in (True, False))
        assert logprobs(fast) == close(logprobs(plain))
        # A letter at a time is not how these tokenizers read a word: drafts end where the word's ids change.
        assert 1 < max(m.forwards for m in fast.stats.members.values()) <= len(letters)


def test_long_texts_are_read_in_parts(monkeypatch):
    """Prompts and continuations longer than a forward or a step may be."""
    text = " ".join(["The bridge stands in Halkus, and was built in 1874."] * 3)
    with shared_ensemble(EMBEDDED, prefill_tokens=16) as small:
        wanted = small.score(LONG_PROMPT, text, drafts=False)
        assert logprobs(small.score(LONG_PROMPT, text)) == close(logprobs(wanted), 1e-3)
        monkeypatch.setattr(drafts, "MAX_PROBABILITIES", 8 * small.union_size)
        parts = small.score(LONG_PROMPT, text)
    assert logprobs(parts) == close(logprobs(wanted), 1e-3)
    assert max(m.forwards for m in parts.stats.members.values()) > len(wanted.tokens) / 8


def test_batches_run_beside_normal_requests_and_share_prompts():
    choices = [" Halkus", " Torno", " stone and wood", " the river"]
    pairs = [(QUESTION, choice) for choice in choices]
    with shared_ensemble(EMBEDDED, cache_gib=0.5) as loaded:
        alone = [loaded.score(*each) for each in pairs]
        text = loaded.generate("The bridge", max_tokens=30).tokens

        async def together():
            first = asyncio.ensure_future(loaded.agenerate("The bridge", max_tokens=30))
            scores = await loaded.ascore_batch(pairs)
            one = await loaded.ascore(*pairs[0], params=SamplingParams(temperature=2.0, max_tokens=1, stop=("H",)))
            return await first, scores, one

        written, scores, one = asyncio.run(together())
        again = loaded.score_batch(pairs, request_ids=["a", "b", "c", "d"])
    assert written.tokens == text
    for found in (scores, again):
        for score, wanted in zip(found, alone, strict=True):
            assert logprobs(score) == close(logprobs(wanted))
    # Nothing of the prompt but its last token is read again.
    assert all(m.reused_tokens == m.prompt_tokens - 1 for score in again for m in score.stats.members.values())
    assert one.logprob == pytest.approx(alone[0].logprob, abs=1e-4)


def test_an_empty_prompt_is_where_texts_begin(ensemble):
    model, tokenizer = pair(EMBEDDED[0])
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    logits = model(torch.tensor([[start]])).logits[0].detach()
    first = ensemble.score("", "The bridge", threshold=0.0, gate="ash").tokens[0]
    logs = log_probabilities(logits, ensemble._members[0].tokenizer)
    assert first.logprob == pytest.approx(logs(0, first.token), abs=1e-4)


def test_members_that_fail():
    asked = ("Where is", " the bridge of stone")
    with faulty_ensemble(on_member_failure="drop", min_members=1) as (one, executor):
        wanted = one.score(*asked, weights={"m1": 0})
        executor.script = lambda name, request_id: "raise" if name == "m1" else None
        score = one.score(*asked)
        assert logprobs(score) == close(logprobs(wanted))
        assert [dropped.member for dropped in score.stats.dropped] == ["m1"]
        executor.script = lambda name, request_id: "nan"
        with pytest.raises(InvalidLogitsError):
            one.score(*asked)
    with faulty_ensemble() as (one, executor):
        executor.script = lambda name, request_id: "raise" if name == "m1" else None
        with pytest.raises(MemberError, match="m1"):
            one.score(*asked)


def test_what_cannot_be_scored_says_why(ensemble):
    for empty in ("", b"", []):
        with pytest.raises(RequestError, match="continuation is empty"):
            ensemble.score("a", empty)
    with pytest.raises(RequestError, match="leave out grammar"):
        ensemble.score("a", "b", grammar=Grammar.regex("b"))
    with pytest.raises(RequestError, match="no token of any member"):
        ensemble.score("a", [b"a", b"no such token"])
    for wrong in (3, None, ["a"], {b"a", b"b"}):
        with pytest.raises(RequestError, match="continuation"):
            ensemble.score("a", wrong)
    with pytest.raises(RequestError, match="surrogate"):
        ensemble.score("a", "\ud800")
    with pytest.raises(RequestError, match="params must be a SamplingParams"):
        ensemble.cut("a", {})
    with pytest.raises(RequestError, match=r"pairs\[1\]"):
        ensemble.score_batch([("a", "b"), "ab"])
    with pytest.raises(RequestError, match="8388608 bytes"):
        ensemble.score("a", b"a" * (8 * 2**20 + 1))
    with pytest.raises(RequestTimeoutError):
        ensemble.score(LONG_PROMPT, TEXTS[1], timeout=1e-6)
    models = [pair(folder) for folder in EMBEDDED[:2]]
    with ensemble_of(models, contexts=[None, 12]) as narrow:
        assert narrow.score("one two", [b" the"] * 4).tokens
        with pytest.raises(RequestError, match=r"member 'm1', whose context holds 12 tokens; shorten"):
            narrow.score("one two", [b" the"] * 40)


def test_a_gate_that_cannot_write_the_text_says_so():
    """A byte-level vocabulary with a byte missing."""
    tokenizer = MemberTokenizer(tokenizer_of(EMBEDDED[0]), "ash")
    tokenizer.token_bytes = [None if data is not None and b"\xff" in data else data for data in tokenizer.token_bytes]
    with pytest.raises(UnwritableTextError, match=r"ash.*cannot encode"):
        cut_continuation(tokenizer, b"a\xff")
    tokenizer.hf = type("Bare", (), {"bos_token_id": None, "eos_token_id": None})()
    tokenizer.__dict__["added_around"] = ((), ())
    from gac_core.engine.continuations import opening_ids

    with pytest.raises(EmptyPromptError, match="neither a BOS nor an EOS"):
        opening_ids(tokenizer)


@pytest.mark.ray
def test_actors_score_as_members_in_this_process_do(ray_nodes):
    pairs = [(prompt, text) for prompt in ("In which town", QUESTION) for text in TEXTS[:2]]
    with ray_nodes.load(EMBEDDED[:2]) as remote, shared_ensemble(EMBEDDED[:2]) as local:
        for asked in ({}, {"threshold": 0.5, "gate": "ash"}, {"combine": "geometric"}, {"drafts": False}):
            for found, wanted in zip(
                remote.score_batch(pairs, **asked), local.score_batch(pairs, **asked), strict=True
            ):
                assert logprobs(found) == close(logprobs(wanted), 1e-3)
                assert [token.rank for token in found.tokens] == [token.rank for token in wanted.tokens]
