"""Boundary alignment: members that agree on a word are never overruled because their tokens differ."""

from __future__ import annotations

import random

import pytest
import torch
from oracle import IdealMember, OracleExecutor, random_chances, train_tokenizer

from gac_core.boundary import View, agreed
from gac_core.boundary_decoder import BoundaryDecoder
from gac_core.commit import Writer, make_commit
from gac_core.decoder import StepDecoder
from gac_core.engine import Engine
from gac_core.poll import Poll
from gac_core.request import MemberText, Request
from gac_core.sampling import Sampler, SamplingParams
from gac_core.tokenizer import MemberTokenizer
from gac_core.vocabulary import Alignment, UnionVocabulary

ROOTS = ["wash", "port", "land", "brook", "hill", "stone", "mar", "kel", "dor", "ven", "tal", "rin", "bur"]
ENDS = ["ing", "ington", "er", "land", "ham", "ton", "field", "ford", "s", "ed", "ly", "ment"]


def words_and_tokenizers(seed: int):
    rng = random.Random(seed)
    words = [f" {root}{end}" for root in ROOTS for end in ENDS]
    cuts = []
    for size in (330, 380):
        # Each tokenizer has seen some words often and others never, so it holds different pieces.
        seen = rng.sample(words, len(words) // 2)
        cuts.append(train_tokenizer([word for word in seen for _ in range(rng.randint(1, 9))], size))
    return words, cuts


class Bench:
    """Real poll, decoders and engine on ideal members."""

    def __init__(self, cuts, chances, alignment: str) -> None:
        self.executor = OracleExecutor([IdealMember(cut, each) for cut, each in zip(cuts, chances, strict=True)])
        tokenizers = [MemberTokenizer(cut, f"m{index}") for index, cut in enumerate(cuts)]
        union = UnionVocabulary(tokenizers)
        names = [tokenizer.name for tokenizer in tokenizers]
        poll = Poll(self.executor, [Alignment(union, tokenizer) for tokenizer in tokenizers], names)
        weights = [1.0] * len(cuts)
        commits = [make_commit("canonical", tokenizer) for tokenizer in tokenizers]
        writer = Writer(commits, [None] * len(cuts))
        decoder = StepDecoder(poll, union, weights, names, writer)
        if alignment == "boundary":
            decoder = BoundaryDecoder(poll, union, weights, names, tokenizers, writer, decoder)
        self.names = names
        self.engine = Engine(self.executor, decoder, 16)

    def word(self, **asked) -> str:
        params = SamplingParams(max_tokens=30, **asked)
        threshold = None if params.threshold == "default" else params.threshold
        texts = {member: MemberText([0]) for member in range(len(self.names))}
        sampler = Sampler(params, params.seed or 0)
        request = Request("r", params, texts, 0, threshold, sampler, 0, self.names)
        self.engine.add_request(request)
        text = ""
        while self.engine.busy:
            for _, event in self.engine.step():
                assert not isinstance(event, Exception), event
                text += event.text
        return text


def overruled(alignment: str, worlds: int = 12, rounds: int = 25) -> tuple[int, int]:
    """How often two ideal members that would write the same word are overruled, of all contested words."""
    wrong = contested = 0
    for seed in range(worlds):
        words, cuts = words_and_tokenizers(seed)
        rng = random.Random(100 + seed)
        for _ in range(rounds):
            common = random_chances(words, rng)
            chances = [random_chances(words, rng, common) for _ in cuts]
            members = [IdealMember(cut, each) for cut, each in zip(cuts, chances, strict=True)]
            alone = {member.greedy() for member in members}
            cut = {
                member.tokenizer.convert_ids_to_tokens(member.paths[word])[0] for member in members for word in alone
            }
            if len(alone) > 1 or len(cut) == 1:
                continue
            contested += 1
            wrong += Bench(cuts, chances, alignment).word() not in alone
    return wrong, contested


def test_members_that_agree_are_never_overruled():
    wrong, contested = overruled("boundary")
    assert contested > 30
    assert wrong == 0


def test_the_papers_alignment_overrules_them_at_times():
    """The bench can tell: this is what boundary alignment is for."""
    wrong, contested = overruled("token")
    assert wrong > 0.05 * contested


def test_agreement_costs_no_extra_forward():
    words, cuts = words_and_tokenizers(1)
    sure = dict.fromkeys(words, 1e-09) | {" washington": 1.0}
    for alignment in ("token", "boundary"):
        bench = Bench(cuts, [sure, sure], alignment)
        assert bench.word() == " washington"
        if alignment == "boundary":
            # One forward per own token and one for the end: what each member alone would have cost.
            alone = sum(len(member.paths[" washington"]) for member in bench.executor.members)
            assert bench.executor.forwards == alone


def drawn_words(alignment: str, count: int = 1500):
    """Words sampled from two cuts of one language over twelve words, and that language."""
    words, cuts = words_and_tokenizers(3)
    few = random.Random(0).sample(words, 12)
    chances = random_chances(few, random.Random(4))
    bench = Bench(cuts, [chances, chances], alignment)
    return [bench.word(temperature=1.0, seed=seed) for seed in range(count)], chances


def test_sampling_from_two_cuts_of_one_language_stays_that_language():
    drawn, chances = drawn_words("boundary")
    assert set(drawn) <= set(chances)
    distance = sum(abs(drawn.count(word) / len(drawn) - chance) for word, chance in chances.items()) / 2
    # Total variation distance; plain draws from the language itself are at about 0.02.
    assert distance < 0.05


def test_the_papers_alignment_writes_words_that_the_language_does_not_have():
    drawn, chances = drawn_words("token", 400)
    assert set(drawn) - set(chances)


@pytest.mark.parametrize("threshold", [0.3, 0.6, 0.9])
def test_thresholded_members_write_words_of_their_language(threshold):
    words, cuts = words_and_tokenizers(5)
    for seed in range(6):
        common = random_chances(words, random.Random(seed))
        chances = [random_chances(words, random.Random(10 + seed + i), common) for i in range(2)]
        assert Bench(cuts, chances, "boundary").word(threshold=threshold) in words


def test_views_tell_masses_of_starts():
    _, cuts = words_and_tokenizers(0)
    union = UnionVocabulary([MemberTokenizer(cut, "m") for cut in cuts])
    probs = torch.softmax(torch.randn(len(union), generator=torch.Generator().manual_seed(0)), -1)
    view = View(union, probs)
    for start in (b"w", b" ", b"la", b"\xff"):
        plain = sum(float(probs[i]) for i, token in enumerate(union.tokens) if token.startswith(start))
        assert view.mass(start) == pytest.approx(plain, abs=1e-6)
    waiting = View(union, probs, b" ")
    assert waiting.token(None) == 0
    assert waiting.mass(b"w") == pytest.approx(view.mass(b" w") / (view.mass(b" ") - view.token(b" ")), rel=1e-4)


def test_first_choices_agree_when_they_start_one_text():
    assert agreed([b" Wash", b" Washington", b" Wash"]) == (True, b" Wash")
    assert agreed([b" Wash", b" Paris"])[0] is False
    assert agreed([None, None]) == (True, None)
    assert agreed([None, b" a"])[0] is False
    assert agreed([b" a", b" ab", b" ac"])[0] is False
