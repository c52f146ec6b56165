"""Random inputs of a soak run: each takes a random generator and an ensemble, and returns what is wrong, or None."""

from __future__ import annotations

import json
import random
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import jsonschema
import schemas
from fuzzing import LEAVES, value

from gac_core import Ensemble, EnsembleConfig, GaCError, Grammar, SamplingParams, Tool

MODELS = Path(__file__).parent.parent / "examples" / "models"
LONGEST_ERROR = 2000
PROMPT = "In which town is the Torno Bridge?"
ALPHABET = [
    *"abc XYZ019\n\t\0\"'\\{}[]<>|/é名\u200d\ufeff",
    "👩‍👩‍👧",
    "<|",
    "|>",
    "<s>",
    "</s>",
    "<tool_call>",
    "<think>",
    "a" * 99,
]


def parameters(rng: random.Random, ensemble: Ensemble) -> str | None:
    """Parameters, most of them wrong."""
    names = [field.name for field in fields(SamplingParams)]
    given = {rng.choice(names): value(rng) for _ in range(rng.randrange(1, 3))}
    given = {"max_tokens": 4, **given}
    if isinstance(given["max_tokens"], int):
        given["max_tokens"] = min(given["max_tokens"], 16)
    try:
        output = ensemble.generate(PROMPT, **given)
    except GaCError as error:
        if any(name in str(error) for name in given):
            raise
        return f"the error names none of {list(given)}: {str(error)[:200]}"
    return None if len(output.tokens) <= given["max_tokens"] else "more than max_tokens"


def text(rng: random.Random, longest: int = 60) -> str:
    """A text of odd pieces."""
    return "".join(rng.choice(ALPHABET) for _ in range(rng.randrange(longest)))


def prompts(rng: random.Random, ensemble: Ensemble) -> str | None:
    """Strings, and what is none; now and then one far too long."""
    kind = rng.random()
    prompt = value(rng) if kind < 0.2 else text(rng) * (rng.choice([10, 1000, 20_000]) if kind > 0.9 else 1)
    one = ensemble.generate(prompt, max_tokens=3, drafts=False)
    other = ensemble.generate(prompt, max_tokens=3)
    return None if one.text == other.text else f"drafts change {one.text!r} to {other.text!r}"


def conversations(rng: random.Random, ensemble: Ensemble) -> str | None:
    """Conversations with turns in any order, and fields of any kind."""
    roles = ["user", "assistant", "system", "tool", "developer", "", "xyz"]
    keys = ["role", "content", "tool_calls", "tool_call_id", "name", "reasoning", "extra"]
    turns: list[Any] = []
    for _ in range(rng.choice([0, 1, 1, 1, 2, 3, 5])):
        turn: dict[str, Any] = {"role": rng.choice(roles[:3] if rng.random() < 0.8 else roles), "content": text(rng)}
        if rng.random() < 0.2:
            turn[rng.choice(keys)] = value(rng)
        turns.append(turn if rng.random() < 0.97 else value(rng))
    ensemble.generate(turns, max_tokens=3)
    return None


def tools(rng: random.Random, ensemble: Ensemble) -> str | None:
    """Calls of tools that must be made; their arguments must satisfy the schema."""
    schema = schemas.drawn(rng.randrange(10**6)) if rng.random() < 0.7 else mutated(rng, rng.choice(schemas.BY_HAND))
    parameters = {"type": "object", "properties": {"x": schema}, "required": ["x"]}
    if rng.random() < 0.1:
        parameters = value(rng)
    name = rng.choice(["lookup", "lookup", text(rng, 5), rng.choice(LEAVES[:26])])
    grammar = Grammar.tool_calls({name: parameters}, required=True)
    Tool(name, "", parameters)
    output = ensemble.generate(PROMPT, max_tokens=40, grammar=grammar, temperature=1.0, seed=1)
    if output.finish_reason != "stop":
        return None
    called = json.loads(output.text.partition("<tool_call>")[2].partition("</tool_call>")[0])
    return invalid(called["arguments"], parameters)


def json_schemas(rng: random.Random, ensemble: Ensemble) -> str | None:
    """Schemas, good, spoiled, deep or long; what is written must satisfy them."""
    kind = rng.random()
    schema: Any = schemas.drawn(rng.randrange(10**6))
    if kind < 0.4:
        schema = mutated(rng, rng.choice([schema, *schemas.BY_HAND]))
    elif kind < 0.5:
        count = rng.choice([10, 300, 1000, 5000])
        chain = {f"d{i}": {"$ref": f"#/$defs/d{i + 1}"} for i in range(count)} | {f"d{count}": {"type": "null"}}
        schema = {"$ref": "#/$defs/d0", "$defs": chain}
    elif kind < 0.6:
        for _ in range(rng.choice([10, 100, 800, 3000])):
            schema = {"type": "array", "items": schema, "maxItems": 1}
    elif kind < 0.65:
        schema = value(rng)
    output = ensemble.generate(
        PROMPT, max_tokens=30, grammar=Grammar.json_schema(schema, closes=rng.random() < 0.3), temperature=1.0, seed=2
    )
    return invalid(json.loads(output.text), schema) if output.finish_reason == "stop" else None


def mutated(rng: random.Random, schema: Any) -> Any:
    """A schema in which a value or two was replaced."""
    copied = json.loads(json.dumps(schema))
    for _ in range(rng.randrange(1, 3)):
        places = list(_places(copied))
        if places:
            holder, key = rng.choice(places)
            leaf = rng.choice(LEAVES)
            holder[key] = rng.choice([leaf, value(rng, 2), {"$ref": "#"}, {"$ref": "#/$defs/p"}, {"not": {}}])
    return copied


def _places(node: Any, depth: int = 20) -> Iterator[tuple[Any, Any]]:
    parts = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    for key, part in parts if depth else ():
        yield node, key
        yield from _places(part, depth - 1)


def invalid(answer: Any, schema: Any) -> str | None:
    """What a validator finds wrong; schemas that it cannot read itself tell nothing."""
    try:
        jsonschema.Draft202012Validator(schema).validate(answer)
    except jsonschema.ValidationError as error:
        return f"{answer!r} does not satisfy the schema: {error.message[:200]}"
    except Exception:
        return None
    return None


def grammars(rng: random.Random, ensemble: Ensemble) -> str | None:
    """Regular expressions, Lark grammars and choices, good, spoiled and huge."""
    kind = rng.random()
    if kind < 0.2:
        listed = [text(rng, 6) for _ in range(rng.choice([1, 5, 50, 20_000 if rng.random() < 0.1 else 100]))]
        output = ensemble.generate(PROMPT, max_tokens=60, grammar=Grammar.choices(listed))
        return None if output.finish_reason == "length" or output.text in listed else f"{output.text!r} is no choice"
    if kind < 0.6:
        atoms = ["a", "[a-z]", "\\d", ".", "(a|b)", "(", ")", "\\", "é", "^", "$", "[", "(?i)", "\\w", "{2}", "/", "x"]
        atoms += ["*", "+", "?", "{0,5}", "{1000}", "(a{1000}){1000}"]
        pattern = "".join(rng.choice(atoms) for _ in range(rng.randrange(12)))
        output = ensemble.generate(PROMPT, max_tokens=10, grammar=Grammar.regex(pattern))
        if output.finish_reason != "stop" or not re.fullmatch(r"[a-z0-9\[\]\\d.|()?*+{},-]*", pattern):
            return None
        with suppress(re.error):
            return None if re.fullmatch(pattern, output.text, re.DOTALL) else f"{output.text!r} is not in {pattern!r}"
        return None
    if kind < 0.75:
        count = rng.choice([10, 500, 2000, 3000, 20_000])
        lark = "start: r0\n" + "".join(f"r{i}: r{i + 1}\n" for i in range(count)) + f'r{count}: "a"\n'
    else:
        pieces = [
            "start: ",
            "a",
            "\n",
            "a: ",
            '"x"',
            "/[a-z]+/",
            "|",
            "(",
            ")",
            "*",
            "+",
            "A: ",
            "%json {}",
            "~ 3",
            "??",
        ]
        lark = "start: " + " ".join(rng.choice(pieces) for _ in range(rng.randrange(20)))
    ensemble.generate(PROMPT, max_tokens=10, grammar=Grammar.lark_grammar(lark))
    return None


def yaml_files(rng: random.Random, ensemble: Ensemble) -> str | None:
    """Configurations with a few characters replaced."""
    good = list("members: [{model: a, weight: 2}, {model: b, dtype: float32}]\ngate: a\nthreshold: 0.5\nmax_queue: 3\n")
    pieces = [
        *"[]{}:,&*!?|>-#'\"%@` \n\t",
        "<<: ",
        "&a ",
        "*a",
        "!!int ",
        "!!timestamp x",
        "null",
        ".nan",
        "\0",
        "9" * 5000,
    ]
    for _ in range(rng.randrange(6)):
        place = rng.randrange(len(good))
        good[place : place + rng.randrange(3)] = rng.choice(pieces)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "ensemble.yaml"
        path.write_text("".join(good))
        config = EnsembleConfig.from_yaml(path)
        again = Path(folder) / "again.yaml"
        again.write_text(config.to_yaml())
        return None if EnsembleConfig.from_yaml(again) == config else "it is read otherwise than it was written"


def folders(rng: random.Random, ensemble: Ensemble) -> str | None:
    """Model folders in which a file was spoiled."""
    with tempfile.TemporaryDirectory() as parent:
        folder = Path(parent) / "ash"
        shutil.copytree(MODELS / "ash", folder)
        victim = folder / rng.choice(
            ["config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json"]
        )
        kind = rng.random()
        if kind < 0.1:
            victim.unlink()
        elif kind < 0.2:
            data = (folder / "model.safetensors").read_bytes()
            (folder / "model.safetensors").write_bytes(data[: rng.randrange(len(data))])
        elif kind < 0.3:
            victim.write_bytes(victim.read_bytes()[: rng.randrange(2000)])
        else:
            told = json.loads(victim.read_text())
            holder, key = rng.choice([place for place in _places(told) if isinstance(told, (dict, list))][:400])
            holder[key] = rng.choice([None, "x", -1, 0, 10**30, 1.5, [], {}, True, "<eos>", [[1]]])
            victim.write_text(json.dumps(told))
        with Ensemble.load([str(folder)], dtype="float32") as loaded:
            loaded.generate(PROMPT, max_tokens=2)
    return None
