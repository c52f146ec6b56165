"""The plain chat template: for members without one, with an end where the next turn would begin."""

from __future__ import annotations

import logging
import queue

import pytest
from conftest import EMBEDDED, copied_pair, ensemble_of, pair
from prompts import encode_prompt, render
from tokenizers.processors import TemplateProcessing
from transformers import AutoTokenizer

from gac_core import (
    ChatTemplateError,
    ConfigError,
    Conversation,
    Ensemble,
    Grammar,
    MemberConfig,
    Message,
    Tool,
    ToolCall,
)
from gac_core.templates.plain import plain_template, turn_ends
from gac_core.tokenization.detokenizer import Detokenizer
from gac_core.tokenization.tokenizer import MemberTokenizer

TALK = [
    Message("system", "Be brief."),
    Message("user", "In which town is it?"),
    Message("assistant", "In Halkus."),
    Message("user", "And the river?"),
]


def plain_member(folder=EMBEDDED[0], **special) -> MemberTokenizer:
    tokenizer = AutoTokenizer.from_pretrained(folder, **special)
    tokenizer.chat_template = plain_template(tokenizer)
    return MemberTokenizer(tokenizer, "base")


@pytest.fixture(scope="module")
def mixed():
    """An embedded member with its own template, and one with the plain one."""
    with Ensemble.load([EMBEDDED[0], MemberConfig(EMBEDDED[1], chat_template="plain")], dtype="float32") as loaded:
        yield loaded


def test_turns_are_text_under_their_roles():
    member = plain_member()
    assert render(member, TALK) == (
        "System: Be brief.\n\nUser: In which town is it?\n\nAssistant: In Halkus.\n\nUser: And the river?\n\nAssistant:"
    )
    tool = Tool("weather", "Tells the weather.", {"type": "object"})
    called = Message("assistant", "", (ToolCall("c1", "weather", "{}"),))
    talk = Conversation([TALK[1], called, Message("tool", "rain", tool_call_id="c1")], [tool])
    text = render(member, talk)
    assert text.startswith("System: ")
    assert '<tool_call>{"name": "weather"' in text
    assert text.endswith("rain\n</tool_response>\n\nAssistant:")


def test_the_bos_stands_where_the_tokenizer_puts_it():
    """Once, in front, where the tokenizer adds one by itself; nowhere else."""
    without = plain_member()
    assert encode_prompt(without, TALK)[:1] == without.encode_prompt("System")[:1]
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED[0])
    token = tokenizer.eos_token
    tokenizer.bos_token = token
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{token} $A", special_tokens=[(token, tokenizer.eos_token_id)]
    )
    tokenizer.chat_template = plain_template(tokenizer)
    ids = encode_prompt(MemberTokenizer(tokenizer, "base"), TALK)
    assert [place for place, index in enumerate(ids) if index == tokenizer.bos_token_id] == [0]


def test_answers_end_where_the_next_turn_would_begin(mixed):
    """As a stop string does, and without being reported as one; texts and answers in a grammar have no such ends."""
    talk = [{"role": "user", "content": "In which town"}]
    request, _ = mixed._input_processor.request(talk, None, {"stop": ["x"]})
    assert set(request.turn_ends) == set(turn_ends(mixed._members[1].tokenizer.hf.chat_template))
    assert request.detokenizer.push(b"In Halkus.\n\nUser: Thanks") == "In Halkus."
    for prompt, asked in (("In which town", {}), (talk, {"grammar": Grammar.regex("a+")}), (talk, {"threshold": 0.0})):
        assert mixed._input_processor.request(prompt, None, asked)[0].turn_ends == ()
    assert mixed._input_processor.request(talk, None, {"threshold": 0.0, "gate": "birch"})[0].turn_ends


@pytest.mark.parametrize("role", ["User", "System", "Assistant", "Tool"])
@pytest.mark.parametrize("gap", ["\n", "\n\n"])
def test_every_turn_is_an_end(role, gap):
    detokenizer = Detokenizer(turn_ends(plain_member().hf.chat_template))
    assert detokenizer.push(f"Users: yes.{gap}{role}: more".encode()) == "Users: yes."


def test_an_end_of_turn_is_no_stop_string(mixed):
    """The engine reports it as the models' own end."""
    talk = [{"role": "user", "content": "In which town"}]
    whole = mixed.generate(talk, max_tokens=8, temperature=3.0, seed=3).text
    assert len(whole) > 2
    request, reply = mixed._input_processor.request(talk, None, {"max_tokens": 8, "temperature": 3.0, "seed": 3})
    request.turn_ends = (whole[1:3],)
    request.detokenizer = Detokenizer(request.turn_ends)
    events: queue.SimpleQueue = queue.SimpleQueue()
    mixed._session.submit(request, events.put)
    text = ""
    while True:
        chunk = reply.read(events.get())
        text += chunk.text
        if chunk.output is not None:
            break
    assert text == whole[:1]
    assert (chunk.output.finish_reason, chunk.output.stopped_by) == ("stop", None)


def test_a_member_without_a_template_is_reported_when_the_ensemble_is_made(caplog):
    model, tokenizer = copied_pair(EMBEDDED[0])
    tokenizer.chat_template = None
    with (
        caplog.at_level(logging.WARNING, logger="gac_core"),
        ensemble_of([(model, tokenizer), pair(EMBEDDED[1])]) as one,
    ):
        told = [record.getMessage() for record in caplog.records if "chat template" in record.getMessage()]
        assert len(told) == 1
        assert all(word in told[0] for word in ("'m0'", "MemberConfig.chat_template", '"plain"'))
        with pytest.raises(ChatTemplateError, match=r"'m0'.*\"plain\""):
            one.generate([{"role": "user", "content": "In which town"}])


def test_a_template_is_a_template():
    with pytest.raises(ConfigError, match="Jinja template or 'plain', not 'chatml'"):
        MemberConfig("model", chat_template="chatml")
