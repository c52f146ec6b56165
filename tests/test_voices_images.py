"""Voices whose prompts have images."""

from __future__ import annotations

import pytest
from test_voices import same
from vision_members import asked, ensemble_of, picture, vision_members  # noqa: F401

from gac_core import SamplingParams, Voice, VoicesPrompt

RED, BLUE = picture(1), picture(2)


def looks(image):
    return asked("Look: ", image, " What is it?")


@pytest.fixture(scope="module")
def eye(vision_members):  # noqa: F811
    with ensemble_of(vision_members("qwen2_vl").member("eye")) as alone:
        yield alone


def test_the_order_and_copies_of_pictures_change_nothing(eye):
    voices = [Voice("eye", looks(image)) for image in (RED, BLUE)]
    once = eye.generate(voices=voices, max_tokens=6)
    for given in (voices[::-1], [voices[0], voices[1], voices[1], voices[0]]):
        same(once, eye.generate(voices=given, max_tokens=6))
    request, _ = eye._input_processor.choices(VoicesPrompt(voices * 2), SamplingParams())[0]
    assert [voice.weight for voice in request.voices] == [2.0, 2.0]
    same(eye.generate(looks(BLUE), max_tokens=6), eye.generate(voices=voices[1:] * 2, max_tokens=6))


def test_two_names_of_one_member_that_see_different_pictures_read_apart(vision_members, eye):  # noqa: F811
    """Their prompts have the same ids: the images alone differ."""
    member = vision_members("qwen2_vl").member("one")
    asks = {"max_tokens": 8, "logprobs": 0}
    want = eye.generate(voices=[Voice("eye", looks(image)) for image in (RED, BLUE)], **asks)
    with ensemble_of(member, member.renamed("two")) as both:
        got = both.generate(voices=[Voice("one", looks(RED)), Voice("two", looks(BLUE))], **asks)
    same(want, got)
    assert [each.logprob for each in got.logprobs] == pytest.approx([each.logprob for each in want.logprobs], abs=1e-4)
