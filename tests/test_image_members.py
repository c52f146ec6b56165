"""Members that read images: equal to transformers' own `generate` with its processor, alone, in batches and cached."""

from __future__ import annotations

import threading
from contextlib import suppress

import pytest
import reference
import torch
from conftest import EMBEDDED, pair
from faulty import fail_at, faulty_ensemble
from vision_members import PlainBlind, PlainSeeing, VisionMember, asked, ensemble_of, picture, vision_members  # noqa: F401

from gac_core import DocumentPrompt, Ensemble, EnsembleConfig, Image, MemberConfig, PromptTooLongError, RequestError
from gac_core.decoding import absence
from gac_core.decoding.draft_sequence import DraftSequence
from gac_core.executor.ray import wire
from gac_core.executor.ray.image_message import ImageMessage
from gac_core.model.chunk import Chunk
from gac_core.model.member import Member
from gac_core.model.row_runner import _cache_bytes
from gac_core.model.vision_runner import VisionRowRunner

TOKENS = 8


def blind() -> Member:
    return Member.from_model(*pair(EMBEDDED[1]), "blind")


# Alone, the one that reads no images is so certain that with equal weights no image would change the answer.
WEIGHTS = {"eye": 9.0, "blind": 1.0}

CONVERSATIONS = {
    "text around": asked("Look: ", picture(1), " What is it?"),
    "image first": asked(picture(2, (40, 12)), "Name its colour."),
    "several": asked("One", picture(1), picture(2, (16, 40)), "two", picture(3), "three"),
    "two turns": [
        *asked("First: ", picture(1)),
        {"role": "assistant", "content": "A boat."},
        *asked("And this? ", picture(4), " Or the first?"),
    ],
    "text alone": asked("Which town?"),
}
ONE = CONVERSATIONS["text around"]


FAST = ("llava", "qwen2_vl")
SLOW = ("gemma3", "idefics3", "qwen3_vl", "llava_next")


@pytest.fixture(scope="module", params=[*FAST, *(pytest.param(kind, marks=pytest.mark.slow) for kind in SLOW)])
def seeing(request, vision_members):  # noqa: F811
    """A kind of member, and an ensemble of it alone."""
    one = vision_members(request.param)
    with ensemble_of(one.member("eye")) as alone:
        yield one, alone


@pytest.fixture(scope="module")
def both(vision_members):  # noqa: F811
    """A member that reads images and one that does not, and an ensemble of them."""
    one = vision_members("qwen2_vl")
    configs = tuple(MemberConfig(name, weight=weight) for name, weight in WEIGHTS.items())
    with Ensemble([one.member("eye"), blind()], EnsembleConfig(configs)) as mixed:
        yield one, mixed


def test_answers_equal_those_of_transformers(seeing):
    one, alone = seeing
    for messages in CONVERSATIONS.values():
        output = alone.generate(messages, max_tokens=TOKENS)
        assert output.text == one.plain_answer(messages, TOKENS)
        shown = [part for message in messages for part in message["content"] if isinstance(part, Image)]
        assert output.stats.members["eye"].images == len(shown)
        assert output.usage.prompt_tokens == one.inputs(messages)["input_ids"].shape[1]


@pytest.mark.parametrize("kind", SLOW[:2])
def test_other_kinds_equal_transformers_too(vision_members, kind):  # noqa: F811
    one, messages = vision_members(kind), CONVERSATIONS["two turns"]
    with ensemble_of(one.member("eye")) as alone:
        assert alone.generate(messages, max_tokens=TOKENS).text == one.plain_answer(messages, TOKENS)


def test_a_model_that_runs_row_by_row(vision_members):  # noqa: F811
    """Its state cannot be truncated: a text that is cut is read again, with its images."""
    one = vision_members("qwen3_5")
    messages = asked("passages " * 8, picture(6), "passages " * 8)
    with ensemble_of(one.member("eye")) as alone:
        (row,) = alone._members
        assert isinstance(row._runner, VisionRowRunner)
        prompts = [messages, asked("Look", picture(7)), messages]
        outputs = alone.generate_batch(prompts, max_tokens=TOKENS)
        assert [output.text for output in outputs] == [one.plain_answer(prompt, TOKENS) for prompt in prompts]
        request, _ = alone._input_processor.request(messages, None, {})
        text = request.voices[0].text
        ids, end = tuple(text.token_ids), text.images.end
        whole = row.forward([Chunk("a", 0, ids, 0, text.images)]) and row.forward([Chunk("a", end, ids[end:])])
        cut = row.forward([Chunk("a", end, (*ids[end:-3], 5, 6))]) and row.forward([Chunk("a", end, ids[end:])])
        assert torch.allclose(whole[0].logits, cut[0].logits, atol=1e-4)
        # The images are kept for this, and count as memory of its cache.
        states = row._runner._states.values()
        pixels = [state.images.tensors["pixel_values"].nbytes for state in states if state.images is not None]
        assert pixels
        assert row.cache_bytes >= sum(_cache_bytes(state.cache) for state in states) + sum(pixels)


def test_a_batch_equals_single_requests(seeing):
    one, alone = seeing
    prompts = [*CONVERSATIONS.values(), asked("Look: ", picture(9), " What is it?")]
    outputs = alone.generate_batch(prompts, max_tokens=TOKENS)
    assert [output.text for output in outputs] == [one.plain_answer(prompt, TOKENS) for prompt in prompts]


def test_text_after_an_image_is_cached_and_another_image_is_not(seeing):
    one, alone = seeing
    first, second = (asked("Look at this picture: ", picture(seed), " What is it?") for seed in (21, 22))
    fresh, again, other = (alone.generate(each, max_tokens=TOKENS) for each in (first, first, second))
    assert again.text == fresh.text
    assert again.stats.members["eye"].reused_tokens == fresh.usage.prompt_tokens - 1
    assert other.text == one.plain_answer(second, TOKENS) != fresh.text
    assert other.stats.members["eye"].reused_tokens == 0
    # A longer conversation continues behind the image, at the model's own positions.
    more = [*first, {"role": "assistant", "content": fresh.text}, *asked("Why?")]
    longer = alone.generate(more, max_tokens=TOKENS)
    assert longer.stats.members["eye"].reused_tokens > one.inputs(first)["input_ids"].shape[1] - 4
    assert longer.text == one.plain_answer(more, TOKENS)


def test_choices_read_their_image_once(seeing):
    _, alone = seeing
    messages = asked("See what stands here: ", picture(31), " Which?")
    outputs = alone.generate_choices(messages, n=3, max_tokens=4, temperature=1.0, seed=3)
    prompt = outputs[0].usage.prompt_tokens
    assert sorted(output.stats.members["eye"].reused_tokens > prompt - 8 for output in outputs) == [False, True, True]


@pytest.mark.parametrize(
    "settings", [{}, {"threshold": 0.4, "gate": "eye"}, {"threshold": 0.97, "gate": "blind"}, {"combine": "geometric"}]
)
def test_a_mixed_ensemble_equals_the_reference(both, settings):
    one, mixed = both
    plain = [PlainSeeing(one), PlainBlind(*pair(EMBEDDED[1]))]
    rules = {**settings, "gate": mixed.names.index(settings.get("gate", "eye"))}
    tokens, _ = reference.generate(plain, ONE, TOKENS, weights=[*WEIGHTS.values()], **rules)
    for drafts in (False, True):
        output = mixed.generate(ONE, max_tokens=TOKENS, drafts=drafts, **settings)
        assert list(output.tokens) == tokens
    assert {name: stats.images for name, stats in output.stats.members.items()} == {"eye": 1, "blind": 0}


def test_images_change_the_answer_of_a_mixed_ensemble(both):
    _, mixed = both
    first, second = (mixed.generate(asked("Look: ", picture(seed), " What is it?"), max_tokens=4) for seed in (1, 2))
    assert first.tokens != second.tokens


def test_members_that_are_not_asked_read_no_images(both):
    """A gate that is always sure decides alone."""
    _, mixed = both
    output = mixed.generate(ONE, max_tokens=2, gate="blind", threshold=1e-9)
    assert [(stats.images, stats.forwards > 0) for stats in output.stats.members.values()] == [(0, False), (0, True)]


def test_lookup_drafts_change_nothing(both):
    _, mixed = both
    messages = asked("passages " * 12, picture(5), "passages " * 12)
    drafted, plain = (mixed.generate(messages, max_tokens=24, drafts=drafts) for drafts in (True, False))
    assert drafted.tokens == plain.tokens


def test_drafted_texts_keep_their_images(both):
    """A text that is committed from a draft is read again with its images if its member loses them."""
    _, mixed = both
    request, _ = mixed._input_processor.request(ONE, None, {})
    voice = request.voices[0]
    assert voice.text.images is not None
    assert DraftSequence(request).text(voice, 0).images is voice.text.images


def test_repetition_penalty_counts_image_tokens_as_transformers_does(seeing):
    one, alone = seeing
    output = alone.generate(ONE, max_tokens=TOKENS, repetition_penalty=1.3)
    assert output.text == one.plain_answer(ONE, TOKENS, repetition_penalty=1.3)


def test_images_are_read_again_after_a_member_lost_its_cache(vision_members):  # noqa: F811
    one = vision_members("qwen2_vl")
    with faulty_ensemble(members=[one.member("eye"), blind()]) as (mixed, executor):
        settings = {"max_tokens": TOKENS, "drafts": False, "weights": WEIGHTS}
        want = mixed.generate(ONE, **settings)
        fail_at(mixed, executor, "eye", 3, "restart", until=3)
        output = mixed.generate(ONE, **settings)
        assert executor.given == ["restart"]
        assert output.tokens == want.tokens
        assert output.stats.members["eye"].tokens > want.stats.members["eye"].tokens


def test_a_member_that_returns_reads_its_images_again(vision_members, monkeypatch):  # noqa: F811
    monkeypatch.setattr(absence, "REJOIN_PAUSE", 0.0)
    one = vision_members("qwen2_vl")
    with faulty_ensemble(members=[one.member("eye"), blind()], on_member_failure="drop") as (mixed, executor):
        fail_at(mixed, executor, "eye", 1, until=3)
        output = mixed.generate(ONE, max_tokens=TOKENS, weights=WEIGHTS, drafts=False)
        (dropped,) = output.stats.dropped
        assert (dropped.at_token, dropped.rejoined_at) == (1, 3)
    plain = [PlainSeeing(one), PlainBlind(*pair(EMBEDDED[1]))]
    away = {1: [0], 2: [0]}
    tokens, _ = reference.generate(
        plain, ONE, TOKENS, weights=[*WEIGHTS.values()], absent=lambda count: away.get(count, [])
    )
    assert list(output.tokens) == tokens


def test_deterministic_members_read_images(vision_members):  # noqa: F811
    one = vision_members("llava")
    with ensemble_of(one.member("eye", deterministic=True, prefill_tokens=4), deterministic=True) as alone:
        outputs = alone.generate_batch([ONE, CONVERSATIONS["several"], ONE], max_tokens=TOKENS)
        assert [each.text for each in outputs] == [
            one.plain_answer(m, TOKENS) for m in (ONE, CONVERSATIONS["several"], ONE)
        ]


def test_contexts_count_image_tokens(vision_members):  # noqa: F811
    one = vision_members("llava")
    length = one.inputs(ONE)["input_ids"].shape[1]
    with ensemble_of(one.member("eye", context=length - 1)) as alone, pytest.raises(PromptTooLongError):
        alone.generate(ONE)


def test_scores_and_likelihoods(both):
    _, mixed = both
    answer = "boat"
    score = mixed.score(ONE, answer)
    assert [stats.images for stats in score.stats.members.values()] == [1, 0]
    likelihoods = mixed.continuation_likelihoods([(ONE, answer), (asked("Look:  What is it?"), answer)])
    assert likelihoods[0]["blind"] == likelihoods[1]["blind"]
    assert likelihoods[0]["eye"] != likelihoods[1]["eye"]
    with pytest.raises(RequestError, match="likelihood of a prompt with images"):
        mixed.prompt_likelihoods(ONE)
    with pytest.raises(RequestError, match="give weights as numbers"):
        mixed.generate(ONE, weights="perplexity")


def test_ensembles_name_the_members_that_see(both):
    _, mixed = both
    assert mixed.vision_members == ("eye",)
    with pytest.raises(RequestError, match="none of the members that take part can read them: blind"):
        mixed.generate(ONE, gate="blind", threshold=0)


def test_images_that_cannot_be_decoded_are_refused(both):
    _, mixed = both
    with pytest.raises(RequestError, match="cannot be decoded"):
        mixed.generate(asked("Look:", Image(picture(1).data[:60])))


def test_images_of_two_conversations_are_decoded_at_once(both):
    """Of more, each of which may take 2 GB, the memory would not suffice."""
    member = both[1]._members[0]
    third = threading.Barrier(3)

    class Slow(Image):
        def pixels(self):
            with suppress(threading.BrokenBarrierError):
                third.wait(0.3)
            return super().pixels()

    def encode():
        member.vision.sample(member.tokenizer, Slow(picture(1).data))

    threads = [threading.Thread(target=encode) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert third.broken


@pytest.mark.slow
@pytest.mark.ray
def test_images_reach_actors(vision_members, ray_nodes):  # noqa: F811
    one = vision_members("qwen2_vl")
    with (
        ray_nodes.load([one.folder, EMBEDDED[1]]) as remote,
        Ensemble.load([one.folder, EMBEDDED[1]], dtype="float32", device="cpu") as local,
    ):
        assert remote.vision_members == local.vision_members == (local.names[0],)
        for messages in (ONE, CONVERSATIONS["two turns"]):
            assert remote.generate(messages, max_tokens=4).tokens == local.generate(messages, max_tokens=4).tokens


def test_images_cross_to_actors_unchanged(both):
    _, mixed = both
    request, _ = mixed._input_processor.request(ONE, None, {})
    images = request.voices[0].text.images
    found = wire.decode(wire.split(wire.encode(ImageMessage.of(images)))).images()
    assert (found.keys, found.count) == (images.keys, 1)
    for one, other in ((found.tensors, images.tensors), (found.token_types, images.token_types)):
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_documents_are_kept_of_texts_alone(seeing):
    """After an image, positions of text may differ from their index, so that nothing read with it is kept."""
    one, alone = seeing
    passage = "The Torno Bridge stands in Halkus. It was built in 1874 by Melka Dorin."
    messages = asked("Passage: {document}")
    assert alone.warm(messages, [passage]).members["eye"].documents == 1
    question = DocumentPrompt(asked("Passage: {document} Which town?"), [passage], prior=False)
    output = alone.generate(question, max_tokens=TOKENS)
    assert output.stats.members["eye"].reused_tokens > 20
    assert output.text == one.plain_answer(asked(f"Passage: {passage} Which town?"), TOKENS)
    with pytest.raises(RequestError, match="the prompt has images, which members eye read; leave the images out"):
        alone.warm([*asked("Look: ", picture(1)), {"role": "assistant", "content": "A boat."}, *messages], [passage])
