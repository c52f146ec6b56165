"""Members that read images: equal to transformers' own `generate` with its processor, alone, in batches and cached."""

from __future__ import annotations

import pytest
from conftest import EMBEDDED, pair
from vision_members import KINDS, picture, vision_members  # noqa: F401

from gac_core import Ensemble, EnsembleConfig, MemberConfig, RequestError
from gac_core.model.member import Member

TOKENS = 8


def ensemble_of(*members: Member, **settings) -> Ensemble:
    configs = tuple(MemberConfig(member.name) for member in members)
    return Ensemble(list(members), EnsembleConfig(configs, **settings))


def blind() -> Member:
    return Member.from_model(*pair(EMBEDDED[1]), "blind")


def asked(*content, **more) -> list[dict]:
    return [{"role": "user", "content": list(content)}]


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


@pytest.fixture(scope="module", params=sorted(KINDS))
def seeing(request, vision_members):  # noqa: F811
    """A kind of member, and an ensemble of it alone."""
    one = vision_members(request.param)
    with ensemble_of(one.member("eye")) as alone:
        yield one, alone


@pytest.mark.parametrize("name", CONVERSATIONS)
def test_answers_equal_those_of_transformers(seeing, name):
    one, alone = seeing
    messages = CONVERSATIONS[name]
    output = alone.generate(messages, max_tokens=TOKENS)
    assert output.text == one.plain_answer(messages, TOKENS)
    shown = sum(1 for message in messages for part in message["content"] if part is picture or hasattr(part, "pixels"))
    assert output.stats.members["eye"].images == shown


def test_a_batch_equals_single_requests(seeing):
    one, alone = seeing
    prompts = list(CONVERSATIONS.values())
    outputs = alone.generate_batch(prompts, max_tokens=TOKENS)
    assert [output.text for output in outputs] == [one.plain_answer(prompt, TOKENS) for prompt in prompts]


def test_ensembles_name_the_members_that_see(seeing):
    one, alone = seeing
    assert alone.seeing == ("eye",)
    with ensemble_of(one.member("eye"), blind()) as both:
        assert both.seeing == ("eye",)
        output = both.generate(CONVERSATIONS["text around"], max_tokens=2)
        assert {name: stats.images for name, stats in output.stats.members.items()} == {"eye": 1, "blind": 0}


def test_images_that_nobody_sees_are_refused():
    with ensemble_of(blind()) as alone, pytest.raises(RequestError, match="none of the members"):
        alone.generate(CONVERSATIONS["text around"])
