"""JSON texts that are closed within max_tokens: always whole, else untouched, the same with drafts and in a batch."""

from __future__ import annotations

import json

import jsonschema
import pytest
from conftest import EMBEDDED, shared_ensemble, start

from gac_core import FinishReason, Grammar, fold
from gac_core.grammar.closing import Closer
from gac_core.grammar.compiler import Compiler
from gac_core.tokenization.vocabulary import UnionVocabulary

LISTS = {
    "type": "object",
    "properties": {
        "documents": {
            "type": "array",
            "items": {
                "type": "object",
                "properties": {"number": {"type": "integer"}, "why": {"type": "string"}},
                "required": ["number", "why"],
            },
        }
    },
    "required": ["documents"],
}
VALUES = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "born": {"anyOf": [{"type": "integer"}, {"type": "null"}]},
        "kind": {"enum": ["town", "river of great length"]},
        "when": {"type": "string", "pattern": "^[0-9]{4}-[0-9]{2}$"},
        "inside": {"anyOf": [{"$ref": "#"}, {"type": "null"}]},
        "ratio": {"type": "number"},
        "sure": {"type": "boolean"},
        "tags": {"type": "array", "items": {"type": "string"}, "minItems": 1},
        "note": {"type": "string"},
    },
    "required": ["name", "born", "kind", "when", "inside", "ratio", "sure", "tags"],
}
ASKED = [{"role": "user", "content": "List the documents."}]
HOT = {"temperature": 1.5}


@pytest.fixture(scope="module")
def pair():
    """Two embedded members, which write lists of long strings when they are sampled hot."""
    with shared_ensemble(EMBEDDED[:2]) as loaded:
        yield loaded


@pytest.fixture(scope="module")
def union(pair):
    return UnionVocabulary([member.tokenizer for member in pair._members])


def starts():
    """Texts that stand in the middle of a schema's."""
    yield from ((LISTS, text) for text in ("", '{"documents": [', '{"documents": [{"number": 12', '{"documents": []'))
    begun = '{"name": "Hal'
    yield from ((VALUES, text) for text in ("", '{"', begun, begun + " \\", begun + "}]", begun + '", "born": 1'))
    inner = '{"name": "", "born": null, "kind": "t'
    yield from ((VALUES, text) for text in (inner, inner + 'own", "when": "19', inner + 'own", "when": "1900-01", "in'))


@pytest.mark.parametrize(("schema", "text"), list(starts()))
def test_a_closing_ends_the_text_from_anywhere(union, schema, text):
    matcher = Compiler(union).start(Grammar.json_schema(schema))._matcher
    ids = [union.ids[bytes([byte])] for byte in text.encode()]
    assert matcher.try_consume_tokens(ids) == len(ids)
    path = Closer(union).closing(matcher)
    whole = text.encode() + b"".join(union.tokens[token] for token in path)
    jsonschema.validate(json.loads(whole), schema)
    # The matcher stands where it stood.
    assert matcher.try_consume_tokens(path) == len(path)
    assert matcher.is_accepting()


def test_a_closing_longer_than_its_limit_is_none(union):
    matcher = Compiler(union).start(Grammar.json_schema({"type": "string", "minLength": 100}))._matcher
    assert Closer(union).closing(matcher, 40) is None
    assert len(Closer(union).closing(matcher)) > 40


@pytest.mark.parametrize("schema", [LISTS, VALUES])
def test_texts_are_whole_at_every_budget(pair, schema):
    shortest = pair._input_processor._compiler.start(Grammar.json_schema(schema, closes=True), 1)._budget.shortest
    limits = (shortest, shortest + 1, shortest + 9, shortest + 40)
    asked = [{"max_tokens": limit, "seed": seed, **HOT} for limit in limits for seed in range(4)]
    closing, plain = (
        [start(pair, ASKED, grammar=Grammar.json_schema(schema, closes=closes), **one) for one in asked]
        for closes in (True, False)
    )
    closed = cut = 0
    for stream, other, one in zip(closing, plain, asked, strict=True):
        output = fold(stream)
        jsonschema.validate(json.loads(output.text), schema)
        assert output.usage.completion_tokens <= one["max_tokens"]
        closed += output.finish_reason is FinishReason.LENGTH
        cut += fold(other).finish_reason is FinishReason.LENGTH
    # Without closing some of the same requests are cut off, so that the above says something.
    assert closed
    assert cut


def test_a_budget_that_is_too_small_for_any_text_cuts_it_off(pair):
    output = pair.generate(ASKED, grammar=Grammar.json_schema(LISTS, closes=True), max_tokens=9)
    assert (output.finish_reason, output.usage.completion_tokens) == (FinishReason.LENGTH, 9)
    assert output.text.startswith('{"docume')


def test_a_context_that_ends_first_is_the_budget(pair):
    content = "passages " * 400
    while pair.count_tokens([{"role": "user", "content": content}]) > pair.context - 40:
        content = content[:-9]
    for seed in range(4):
        asked = {"max_tokens": 200, "seed": seed, "grammar": Grammar.json_schema(LISTS, closes=True), **HOT}
        jsonschema.validate(json.loads(pair.generate([{"role": "user", "content": content}], **asked).text), LISTS)


def test_what_ends_in_time_is_left_as_it_is(pair):
    short = {"type": "object", "properties": {"town": {"type": "string", "maxLength": 8}}, "required": ["town"]}
    for seed in range(4):
        asked = {"max_tokens": 200, "seed": seed, **HOT}
        plain = pair.generate(ASKED, grammar=Grammar.json_schema(short), **asked)
        closes = pair.generate(ASKED, grammar=Grammar.json_schema(short, closes=True), **asked)
        assert (closes.text, closes.finish_reason) == (plain.text, FinishReason.STOP)


def test_drafts_and_batches_change_nothing(pair):
    grammar = Grammar.json_schema(LISTS, closes=True)
    asked = {"max_tokens": 60, "seed": 1, "grammar": grammar}
    plain = [pair.generate(ASKED, drafts=False, temperature=heat, **asked) for heat in (0.0, 1.5)]
    drafted = [pair.generate(ASKED, temperature=heat, **asked) for heat in (0.0, 1.5)]
    assert [one.text for one in drafted] == [one.text for one in plain]
    assert [one.finish_reason for one in drafted] == [one.finish_reason for one in plain]
    batch = pair.generate_batch([ASKED] * 3, temperature=1.5, **asked)
    assert {one.text for one in batch} == {plain[1].text}
