"""Random values in every constructor: each is accepted, or refused by a short error of ours that names the field."""

from __future__ import annotations

import random
import string
from dataclasses import fields
from functools import partial

import pytest
import yaml
from fuzzing import value

from gac_core import (
    Conversation,
    EnsembleConfig,
    GaCError,
    Grammar,
    MemberConfig,
    Message,
    SamplingParams,
    Tool,
    ToolCall,
    UnknownArgumentError,
)

ROUNDS = 400


def refused(make, name: str) -> bool:
    """Whether a constructor refuses its values; anything but a short error that names the field fails the test."""
    try:
        make()
        return False
    except GaCError as error:
        caught = error
    text = str(caught)
    assert len(text) < 2000, text[:3000]
    assert name in text or isinstance(caught, UnknownArgumentError), (name, text)
    return True


def written_and_read(kind, values) -> None:
    """Whatever is accepted can be written down and read again."""
    config = kind(**values)
    if kind is EnsembleConfig:
        assert EnsembleConfig.from_dict(yaml.safe_load(config.to_yaml())) == config


@pytest.mark.parametrize("seed", range(3))
def test_parameters(seed):
    rng = random.Random(seed)
    names = [field.name for field in fields(SamplingParams)]
    outcomes = set()
    for _ in range(ROUNDS):
        name, given = rng.choice(names), value(rng)
        outcomes.add(refused(partial(SamplingParams, **{name: given}), name))
    assert outcomes == {True, False}


@pytest.mark.parametrize("kind", [MemberConfig, EnsembleConfig])
def test_settings(kind):
    rng = random.Random(5)
    names = [field.name for field in fields(kind)]
    outcomes = set()
    for _ in range(ROUNDS):
        name, given = rng.choice(names), value(rng)
        settings = {"model": "ash"} if kind is MemberConfig else {"members": ["ash"]}
        make = partial(written_and_read, kind, {**settings, name: given})
        outcomes.add(refused(make, "member" if name == "members" else name))
    assert outcomes == {True, False}


def test_yaml(tmp_path):
    rng = random.Random(7)
    path = tmp_path / "ensemble.yaml"
    good = "members: [{model: a, weight: 2}, {model: b, dtype: float32}]\ngate: a\nthreshold: 0.5\nmax_queue: 3\n"
    pieces = [*"[]{}:,&*!?|>-#'\"%@` \n\t", "<<: ", "&a ", "*a", "!!int ", "!!timestamp x", "null", ".nan", "\x00", "é"]
    outcomes = set()
    for _ in range(ROUNDS):
        text = list(good)
        for _ in range(rng.randrange(5)):
            place = rng.randrange(len(text))
            text[place : place + rng.randrange(3)] = rng.choice([*pieces, rng.choice(string.printable), "9" * 5000])
        data = "".join(text).encode()
        if rng.random() < 0.1:
            data = data[: rng.randrange(len(data))] + bytes([rng.randrange(128, 256)]) + data[5:]
        path.write_bytes(data)
        outcomes.add(refused(lambda: EnsembleConfig.from_yaml(path), ""))
    assert outcomes == {True, False}


def test_bombs_of_merges_end(tmp_path):
    path = tmp_path / "ensemble.yaml"
    lines = [f"m{i}: &m{i} {{<<: [{', '.join([f'*m{i - 1}'] * 20)}], k{i}: 1}}" for i in range(1, 12)]
    path.write_text("\n".join(["m0: &m0 {k0: 1}", *lines, "members: [*m11]"]))
    assert refused(lambda: EnsembleConfig.from_yaml(path), "")


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda v: Grammar.json_schema(v), "schema"),
        (lambda v: Grammar.json_schema({"$defs": v, "properties": v, "oneOf": v}), "schema"),
        (lambda v: Grammar.regex(v), "regular expression"),
        (lambda v: Grammar.lark_grammar(v), "Lark grammar"),
        (lambda v: Grammar.choices(v), "choices"),
        (lambda v: Grammar.tool_calls({"a": v}), "tool 'a'"),
        (lambda v: Grammar.tool_calls(v), "tool"),
        (lambda v: Tool(v), "name"),
        (lambda v: Tool("a", v), "description"),
        (lambda v: Tool("a", parameters=v), "parameters"),
        (lambda v: Tool.from_openai(v), "a tool must have the form"),
        (lambda v: Tool.from_openai({"type": "function", "function": v}), "a tool"),
        (lambda v: ToolCall("1", "a", v), "arguments"),
        (lambda v: ToolCall.from_openai(v), "a tool call must have the form"),
        (lambda v: Message(v, "x"), "role"),
        (lambda v: Message("user", v), "'text'"),
        (lambda v: Message("assistant", "x", tool_calls=v), "call"),
        (lambda v: Message("tool", "x", tool_call_id=v), "tool_call_id"),
        (lambda v: Message("user", "x", name=v), "name"),
        (lambda v: Conversation(v), "message"),
        (lambda v: Conversation([{"role": "user", "content": "x"}], tools=v), "tool"),
        (lambda v: Conversation([{"role": "user", "content": "x"}], tool_choice=v), "tool_choice"),
    ],
)
def test_grammars_tools_and_messages(make, name):
    rng = random.Random(11)
    # A message's content is named by its parts where it is a list of them.
    assert {refused(lambda: make(value(rng)), "" if name == "'text'" else name) for _ in range(60)} >= {True}
